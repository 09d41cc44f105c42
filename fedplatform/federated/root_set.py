"""The server's small clean data set: its own update, the loss of any step on it, and rounds played on it alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from fedplatform.core.messages import Rehearsal
from fedplatform.core.seeding import torch_generator
from fedplatform.core.tasks import flipped, kinds_of, num_kinds
from fedplatform.federated.hospital import Hospital, never_stop
from fedplatform.learning.models.freezing import training_mode
from fedplatform.learning.training import Batch

LEAST_SCANS = 4  # a made-up hospital with fewer learns nothing
BROKEN = 1e6  # the loss of weights under which the model answers NaN
CONCENTRATIONS = (100.0, 1.0, 0.3)  # of classes in made-up hospitals: even, uneven, almost one class each


class RootSet:
    """The root scans (FLTrust, Cao et al., NDSS 2021), held as a hospital of the server's own."""

    def __init__(self, hospital: Hospital) -> None:
        self.hospital = hospital
        self._images = hospital.trainer.images(hospital.training_images)
        self._labels = hospital.trainer.compute.sent(hospital.training_labels)

    def at(self, weights: np.ndarray, round_number: int) -> RootInRound:
        """The root set in one round, from the broadcast ``weights`` (d,); trains the server's own update."""
        shared = self.hospital.trainer.layout.num_shared
        update = self.hospital.train(weights, round_number)
        delta = update.delta[:shared]
        return RootInRound(self.hospital, self._images, self._labels, weights, round_number, delta)


@dataclass(frozen=True, eq=False)
class RootInRound:
    """:class:`~fedplatform.core.messages.Root` for one broadcast; ``delta`` is the shared part of its update."""

    hospital: Hospital
    images: torch.Tensor
    labels: torch.Tensor
    weights: np.ndarray
    round_number: int
    delta: np.ndarray

    def losses(self, steps: np.ndarray) -> np.ndarray:
        """Mean loss on the root scans, as the objective judges it, after each step: (m, d) to (m,) float64.

        Batch normalisation takes its statistics from the root scans under the very weights that are judged, as every
        hospital does before it uses them.
        """
        with torch.no_grad(), self.hospital.trainer.compute.computing():
            losses = [self._loss(step) for step in steps]
        # Read at once: a GPU would be waited for after every step.
        found = torch.stack(losses).cpu().double().numpy() if losses else np.zeros(0)
        finite: np.ndarray = np.nan_to_num(found, nan=BROKEN, posinf=BROKEN)
        return finite

    def gradient(self, step: np.ndarray) -> np.ndarray:
        """Gradient (d,) of that loss in the weights after one step (d,)."""
        trainer = self.hospital.trainer
        trainer.model.zero_grad()
        with trainer.compute.computing():
            self._loss(step).backward()
        parameters = dict(trainer.model.named_parameters())
        slopes = [parameters[name].grad for name in trainer.layout.shared_names]
        shapes = [parameters[name] for name in trainer.layout.shared_names]
        parts = [torch.zeros_like(at) if slope is None else slope for slope, at in zip(slopes, shapes, strict=True)]
        return torch.cat([part.reshape(-1) for part in parts]).nan_to_num().cpu().numpy()

    def _loss(self, step: np.ndarray) -> torch.Tensor:
        """The loss after one step (d,), with its graph where gradients are on."""
        trainer = self.hospital.trainer
        trainer.load(self._stepped(step), self.hospital.personal)
        training_mode(trainer.model)
        draws = torch_generator(trainer.training.seed, "root loss")  # the same for every step that is compared
        return trainer.plain_loss_of(Batch(self.images, self.labels, draws))

    def _stepped(self, step: np.ndarray) -> np.ndarray:
        """The broadcast weights after a step of their shared part."""
        stepped = self.weights.copy()
        stepped[: len(step)] += step
        return stepped

    def rehearse(self, *, num_hospitals: int, num_rounds: int, generator: torch.Generator) -> list[Rehearsal]:
        """Rounds of a federation that the server plays by itself from the broadcast weights.

        Every round deals the root scans anew to made-up hospitals, a third of them to each, with the classes more or
        less unevenly mixed, and steps along the plain mean.
        """
        draw = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        now, previous, rounds = self, np.zeros_like(self.delta), []
        for number in range(num_rounds):
            concentration = CONCENTRATIONS[number % len(CONCENTRATIONS)]
            dealt = [now._deal(concentration, draw) for _ in range(num_hospitals)]
            honest = np.stack([now._train(scans, flip=False, generator=generator) for scans in dealt])
            flipped = np.stack([now._train(scans, flip=True, generator=generator) for scans in dealt])
            rounds.append(Rehearsal(honest, flipped, now.delta, previous, now))
            previous = honest.mean(axis=0)
            everything = np.arange(len(self.labels))
            now = replace(now, weights=now._stepped(previous), round_number=now.round_number + 1)
            now = replace(now, delta=now._train(everything, flip=False, generator=generator))
        return rounds

    def _deal(self, concentration: float, draw: np.random.Generator) -> np.ndarray:
        """The scans of one made-up hospital: a third of the root scans, drawn by a random preference for classes."""
        labels = self.hospital.training_labels
        kinds, count = kinds_of(labels), num_kinds(labels, self.hospital.trainer.training.num_classes)
        liking = draw.dirichlet(np.full(count, concentration)) + 1e-3
        chances = liking[kinds] / liking[kinds].sum()
        return draw.choice(len(kinds), size=max(len(kinds) // 3, LEAST_SCANS), replace=False, p=chances)

    def _train(self, scans: np.ndarray, *, flip: bool, generator: torch.Generator) -> np.ndarray:
        """The shared part of what training on some of the root scans gives; (d,)."""
        hospital, training = self.hospital, self.hospital.trainer.training
        labels = hospital.training_labels[scans]
        # Played rounds may outnumber the real ones, and after the last the step size is zero.
        number = min(self.round_number, training.rounds)
        delta, _, _ = hospital.trainer.fit(
            self.weights,
            hospital.personal,
            images=hospital.training_images[scans],
            labels=flipped(labels, training.num_classes) if flip else labels,
            groups=hospital.training_groups[scans],
            round_number=number,
            generator=generator,
            should_stop=never_stop,
        )
        return delta[: len(self.delta)]
