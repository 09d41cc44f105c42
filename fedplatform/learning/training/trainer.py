"""Local training in a hospital, and the prediction that goes with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import nn

from fedplatform.core.compute import CPU, Compute, host_copy
from fedplatform.core.seeding import lent_stream, torch_generator
from fedplatform.core.tasks import TaskName, counts_by_answer, kinds_of
from fedplatform.data.device_pixels import DevicePixels, Pictures, images_on
from fedplatform.data.images import scans_at_once
from fedplatform.learning.models import Classifier, ModelBuilder
from fedplatform.learning.models.freezing import has_frozen_statistics, training_mode
from fedplatform.learning.models.frozen_features import remember
from fedplatform.learning.models.memory_layout import laid_out
from fedplatform.learning.parameters import (
    BATCH_NORM,
    ParameterLayout,
    PersonalState,
    batch_norm_names,
    measured_names,
    names_that_stay,
    plain_copy,
)
from fedplatform.learning.training.algorithms import Algorithm, ControlVariates, HeadFirst, OwnModel
from fedplatform.learning.training.augmentation import Augmentation
from fedplatform.learning.training.network_check import require_answers, require_plain_weights
from fedplatform.learning.training.objectives import Batch, CrossEntropy, Movable, Objective
from fedplatform.learning.training.own_model import ALPHA, OWN, first_copy, mix_in
from fedplatform.learning.training.sampling import SamplingName, epoch_order, odds_of
from fedplatform.learning.training.schedule import Cosine, Schedule
from fedplatform.learning.training.sgd import Sgd

PREDICTION_BATCH = 128
LEAST_BATCH = 2  # batch normalisation has no variance of one scan
SETTLING_SCANS = 128  # enough for a mean and a variance
OWN_CONTROL = "control_variate"  # the name of a hospital's own in its personal state

P = TypeVar("P", Pictures, np.ndarray)

OptimiserName = Literal["sgd", "adamw"]


@dataclass(frozen=True)
class LocalTraining:
    """Everything that a hospital must know to train: the network, the algorithm and its budget in one round."""

    model: ModelBuilder
    algorithm: Algorithm
    channels: int
    num_classes: int
    size: int
    rounds: int
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    seed: int
    objective: Objective = field(default_factory=CrossEntropy)
    augmentation: Augmentation | None = None
    optimiser: OptimiserName = "sgd"
    sampling: SamplingName = "scans"
    schedule: Schedule = field(default_factory=Cosine)
    clip: float = 0.0  # the largest L2 norm of a step's gradient; 0 leaves it as it is
    task: TaskName = "multiclass"
    compute: Compute = field(default_factory=Compute)

    def learning_rate_in(self, round_number: int) -> float:
        """The step size of a round."""
        return self.learning_rate * self.schedule.share(round_number, rounds=self.rounds)


class Stopped(Exception):  # noqa: N818 - an order that was obeyed, not an error
    """Training was told to stop before it was done."""


class Trainer:
    """One model in memory, lent to one hospital after another: state goes in and comes out.

    A hospital's own part of the state (its batch normalisation, its last layer, its own copy of the whole) is an
    argument and a result, so a process that serves a hundred hospitals holds one model. Vectors and states are on the
    host, whatever the network computes on; it goes to its device when it is first used. Raises ValueError for a
    network that the algorithm or the objective cannot train.
    """

    def __init__(self, training: LocalTraining) -> None:
        self.training = training
        with lent_stream(torch_generator(training.seed, "initial weights").initial_seed()):
            network = training.objective.network(
                training.model, channels=training.channels, num_classes=training.num_classes, size=training.size
            )
            require_plain_weights(network)
            self.model: nn.Module = laid_out(network, channels=training.channels, size=training.size)
        remember(self.model)
        algorithm = training.algorithm
        stays = algorithm.personal(self.model) | names_that_stay(self.model)
        corrected = isinstance(algorithm, ControlVariates)
        if isinstance(algorithm, ControlVariates):
            algorithm.require(optimiser=training.optimiser, momentum=training.momentum)
        self.layout = ParameterLayout.of(self.model, personal=stays, controls=corrected)
        self.initial_weights = self.layout.flatten(self.model)
        self.initial_personal: PersonalState = {
            **self._personal(),
            **(first_copy(self.model, algorithm) if isinstance(algorithm, OwnModel) else {}),
            **({OWN_CONTROL: torch.zeros(self.layout.num_shared)} if corrected else {}),
        }
        kept = {*self.layout.names, *self.layout.personal}
        self._constants = {name: value.clone() for name, value in self.model.named_buffers() if name not in kept}

    @cached_property
    def compute(self) -> Compute:
        """What this process computes with. Raises :class:`ComputeError` where it has no such device."""
        return self.training.compute.here()

    @property
    def has_own_part(self) -> bool:
        """Whether a hospital's model differs from the shared one."""
        return bool(set(self.initial_personal) - {OWN_CONTROL})

    @cached_property
    def objective(self) -> Objective:
        """The objective, with the networks that it carries on the device."""
        objective = self.training.objective
        return objective.to(self.compute.place) if isinstance(objective, Movable) else objective

    def rehearse(self) -> None:
        """Show a copy of a classifier two empty scans. Raises ValueError where it does not answer as one."""
        setting = self.training
        if isinstance(self.model, Classifier):
            require_answers(self.model, channels=setting.channels, num_classes=setting.num_classes, size=setting.size)

    def load(self, weights: np.ndarray, personal: PersonalState) -> None:
        """Put the broadcast weights (d,) and one hospital's personal layers into the model, as training starts."""
        self.model.to(self.compute.place)
        self._fill(self.model, weights, personal)

    def load_served(self, weights: np.ndarray, personal: PersonalState) -> None:
        """Put in the model by which the hospital answers: the same, or with its own copy where it keeps one."""
        self.load(weights, personal)
        if ALPHA in personal:
            mix_in(self.model, personal)

    def model_of(self, weights: np.ndarray, personal: PersonalState) -> nn.Module:
        """The model by which the hospital answers, as an object of its own on the CPU: in evaluation mode, frozen."""
        model = copy.deepcopy(self.model).to(CPU)
        self._fill(model, weights, personal)
        if ALPHA in personal:
            mix_in(model, personal)
        return model.eval().requires_grad_(False)

    def images(self, pictures: Pictures) -> torch.Tensor:
        """Pictures as the network takes them, on its device."""
        return images_on(pictures, self.compute)

    def plain_loss_of(self, batch: Batch) -> torch.Tensor:
        """The loss by which the model that is loaded is judged, a scalar on the device."""
        with self.compute.autocast():
            return self.objective.plain_loss(self.model, batch)

    def _fill(self, model: nn.Module, weights: np.ndarray, personal: PersonalState) -> None:
        self.layout.load(weights, model)
        state = model.state_dict()
        for name in self.layout.personal:
            state[name].copy_(personal[name])
        # What neither travels nor stays in the hospital must not go from one hospital to the next in this model.
        for name, value in model.named_buffers():
            if name in self._constants and value.shape == self._constants[name].shape:
                value.copy_(self._constants[name])

    def fit(
        self,
        weights: np.ndarray,
        personal: PersonalState,
        *,
        images: Pictures,
        labels: np.ndarray,
        groups: np.ndarray,
        round_number: int,
        generator: torch.Generator,
        should_stop: Callable[[], bool],
    ) -> tuple[np.ndarray, PersonalState, float]:
        """Train for the local epochs and return (update (d,) float32, new personal state, mean loss).

        ``images`` are uint8 (n, c, h, w), ``labels`` (n,) or (n, k), ``groups`` (n,). A copy of its own that the
        hospital keeps comes back as it was; that is for :meth:`fit_own`. Raises :class:`Stopped` as soon as
        ``should_stop()`` is true.
        """
        self.load(weights, personal)
        training_mode(self.model)
        algorithm = self.training.algorithm
        optimiser = self._optimiser(self.model.parameters(), round_number)
        shared = set(self.layout.shared_names)
        pulled = [(p, p.detach().clone()) for name, p in self.model.named_parameters() if name in shared]
        corrections = self._corrections(weights, personal)
        losses: list[torch.Tensor] = []
        for epochs, trained in self._phases():
            with _only(self.model, trained), _own_draws(generator), self.compute.computing():
                for batch in self._batches(
                    images,
                    labels,
                    groups,
                    epochs=epochs,
                    round_number=round_number,
                    generator=generator,
                    stop=should_stop,
                ):
                    optimiser.zero_grad()
                    loss = self._loss(batch)
                    loss.backward()
                    if algorithm.mu:
                        for parameter, start in pulled:
                            # The gradient of mu/2 ||w - w_t||^2, without that term's graph over all weights.
                            if parameter.grad is not None:
                                parameter.grad.add_(parameter.detach() - start, alpha=algorithm.mu)
                    self._clip(self.model.parameters())
                    for (parameter, _), correction in zip(pulled, corrections, strict=False):
                        if parameter.grad is not None:
                            parameter.grad.add_(correction)
                    optimiser.step()
                    losses.append(loss.detach())
        delta = self.layout.flatten(self.model)
        delta -= weights
        # Read once and here: a GPU would be waited for at every step.
        mean = float(np.mean(torch.stack(losses).cpu().double().numpy())) if losses else float("nan")
        own = self._new_control(delta, weights, personal, steps=len(losses), round_number=round_number)
        return delta, {**personal, **self._personal(), **own}, mean

    def fit_own(
        self,
        weights: np.ndarray,
        personal: PersonalState,
        *,
        images: Pictures,
        labels: np.ndarray,
        groups: np.ndarray,
        round_number: int,
        generator: torch.Generator,
        should_stop: Callable[[], bool],
    ) -> PersonalState:
        """Train the hospital's own copy v for the local epochs beside the broadcast weights w, and return its state.

        Without such a copy nothing happens. Each step takes the gradient g at s = alpha v + (1 - alpha) w; v moves
        along alpha g, then towards w by the exact proximal step of lam/2 ||v - w||^2, which no lam makes unstable; and
        alpha, where it is learned, along <g, v - w>. Deng et al. let w train meanwhile; here it is the one that the
        next answers are mixed with, the broadcast one.
        """
        algorithm = self.training.algorithm
        if not isinstance(algorithm, OwnModel):
            return personal
        self.load(weights, personal)
        shared = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        own = {name: personal[OWN + name].to(self.compute.place, copy=True) for name in shared}
        alpha = personal[ALPHA].to(self.compute.place)
        optimiser = self._optimiser(own.values(), round_number)
        rate = self.training.learning_rate_in(round_number)
        pull = rate * algorithm.lam / (1 + rate * algorithm.lam)
        mix_in(self.model, personal)
        training_mode(self.model)
        batches = self._batches(
            images,
            labels,
            groups,
            epochs=self.training.epochs,
            round_number=round_number,
            generator=generator,
            stop=should_stop,
        )
        # In double precision, where the device has it: the sum of all slopes is of numbers of very different sizes.
        exact = torch.float32 if self.compute.place.type == "mps" else torch.float64
        with _own_draws(generator), self.compute.computing():
            for batch in batches:
                self.model.zero_grad()
                self._loss(batch).backward()
                slopes = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
                uphill = torch.zeros((), dtype=exact, device=self.compute.place)
                for name, slope in slopes.items():
                    uphill = uphill + (slope * (own[name] - shared[name])).sum().to(exact)
                    own[name].grad = alpha * slope
                self._clip(own.values())
                optimiser.step()
                for name, value in own.items():
                    value.lerp_(shared[name], pull)
                if algorithm.learns_alpha:
                    alpha = (alpha.to(exact) - rate * uphill).clamp(0.0, 1.0).float()
                with torch.no_grad():
                    for name, parameter in self.model.named_parameters():
                        parameter.copy_(torch.lerp(shared[name], own[name], alpha))
        state = self.model.state_dict()
        measured = batch_norm_names(self.model) | measured_names(self.model)
        statistics = {OWN + name: host_copy(state[name]) for name in measured if name not in own}
        return {
            **personal,
            **{OWN + name: value.detach().cpu() for name, value in own.items()},
            **statistics,
            ALPHA: alpha.cpu(),
        }

    def settle(
        self, weights: np.ndarray, personal: PersonalState, images: Pictures, labels: np.ndarray
    ) -> PersonalState:
        """Measure the personal batch normalisation statistics anew: on the broadcast weights, on the hospital's scans.

        After local training they describe the hospital's own weights; the broadcast ones are an average with others',
        and under the old statistics they can be no better than chance. Affine parts keep their values. Every class that
        the hospital has counts alike: the statistics of scans of mostly one class would remove the very offset that
        tells the classes apart. Nothing happens where no statistics stay in the hospital.
        """
        prefix = OWN if ALPHA in personal else ""
        measured = [name for name in batch_norm_names(self.model) if prefix + name in personal]
        if not measured:
            return personal
        few = images[_class_balanced(kinds_of(labels), SETTLING_SCANS)]
        self.load_served(weights, personal)
        self.model.eval()
        normal = [module for module in self.model.modules() if isinstance(module, BATCH_NORM)]
        layers = [layer for layer in normal if not has_frozen_statistics(layer)]
        usual = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain average over the batches
            layer.train()
        with self._answering():
            for part in self._parts(few):
                self.model(self.images(part))
        for layer, momentum in zip(layers, usual, strict=True):
            layer.momentum = momentum
        state = self.model.state_dict()
        buffers = {name for name, _ in self.model.named_buffers()}
        return {**personal, **{prefix + name: host_copy(state[name]) for name in measured if name in buffers}}

    def predict(self, weights: np.ndarray, personal: PersonalState, images: Pictures) -> np.ndarray:
        """Class probabilities (n, num_classes) float32 of uint8 images (n, c, h, w); (n, 0) where no class is named."""
        self.load_served(weights, personal)
        self.model.eval()
        with self._answering():
            answers = [
                self.objective.probabilities(self.model, self.images(part)).float() for part in self._parts(images)
            ]
            if not answers:
                return np.zeros((0, self.training.num_classes), np.float32)
            found: np.ndarray = torch.cat(answers).cpu().numpy()
        return found

    def plain_loss(self, weights: np.ndarray, personal: PersonalState, images: Pictures, labels: np.ndarray) -> float:
        """Mean over scans of the loss by which the network is judged, the same draws every time; NaN without scans."""
        if not len(images):
            return float("nan")
        self.load_served(weights, personal)
        self.model.eval()
        generator = torch_generator(self.training.seed, "plain loss")
        with self._answering():
            losses = [
                self.plain_loss_of(Batch(self.images(part), self.compute.sent(answers), generator))
                for part, answers in zip(self._parts(images), self._parts(labels), strict=True)
            ]
            means: list[float] = torch.stack(losses).cpu().tolist()
        return sum(len(part) * mean for part, mean in zip(self._parts(labels), means, strict=True)) / len(images)

    def _parts(self, values: P) -> Iterator[P]:
        """Scans or their labels, as many at a time as a prediction looks at together."""
        many = scans_at_once(PREDICTION_BATCH, self.training.size)
        return (values[start : start + many] for start in range(0, len(values), many))

    def _personal(self) -> PersonalState:
        state = self.model.state_dict()
        return {name: plain_copy(state[name]) for name in self.layout.personal}

    def _phases(self) -> list[tuple[int, frozenset[str]]]:
        """How many epochs of a round train which parameters, in order; frozen ones are in no phase."""
        everything = frozenset(name for name, value in self.model.named_parameters() if value.requires_grad)
        algorithm, epochs = self.training.algorithm, self.training.epochs
        if not isinstance(algorithm, HeadFirst):
            return [(epochs, everything)]
        head = everything & set(self.layout.personal)
        phases = [(algorithm.head_epochs, head), (epochs, everything - head)]
        return [(number, trained) for number, trained in phases if trained]

    def _batches(
        self,
        images: Pictures,
        labels: np.ndarray,
        groups: np.ndarray,
        *,
        epochs: int,
        round_number: int,
        generator: torch.Generator,
        stop: Callable[[], bool],
    ) -> Iterator[Batch]:
        """Shuffled batches, augmented; pictures and labels that are on the device are picked there."""
        setting = self.training
        answers = self.compute.sent(labels)
        odds = odds_of(setting.sampling, kinds_of(labels), groups)
        counts = self.compute.sent(counts_by_answer(labels, setting.num_classes).astype(np.float32))
        for epoch in range(epochs):
            order = epoch_order(len(labels), odds, generator)
            there = self.compute.sent(order.numpy())
            for first, rows, rows_there in zip(
                range(0, len(labels), setting.batch_size),
                order.split(setting.batch_size),
                there.split(setting.batch_size),
                strict=True,
            ):
                if stop():
                    raise Stopped
                if len(rows) < LEAST_BATCH:
                    continue
                scans = self.images(images[rows_there] if isinstance(images, DevicePixels) else images[rows.numpy()])
                if setting.augmentation is not None:
                    scans = setting.augmentation(scans, generator)
                within = (epoch + first / len(labels)) / epochs
                progress = min((round_number - 1 + within) / setting.rounds, 1.0)
                yield Batch(scans, answers[rows_there], generator, progress, counts)

    def _loss(self, batch: Batch) -> torch.Tensor:
        """The loss that a step minimises, a scalar on the device."""
        with self.compute.autocast():
            return self.objective.loss(self.model, batch)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """The context in which the network answers and does not learn."""
        with torch.inference_mode(), self.compute.computing(), self.compute.autocast():
            yield

    def _optimiser(self, parameters: Iterable[torch.Tensor], round_number: int) -> Sgd | torch.optim.AdamW:
        setting, rate = self.training, self.training.learning_rate_in(round_number)
        if setting.optimiser == "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=setting.weight_decay)
        return Sgd(parameters, learning_rate=rate, momentum=setting.momentum, weight_decay=setting.weight_decay)

    def _clip(self, parameters: Iterable[torch.Tensor]) -> None:
        """Shorten the gradient of a step to the largest norm that is allowed."""
        if self.training.clip:
            nn.utils.clip_grad_norm_(parameters, self.training.clip)

    def _corrections(self, weights: np.ndarray, personal: PersonalState) -> list[torch.Tensor]:
        """c - c_i, in the shapes of the shared parameters and on their device; none without control variates."""
        if not self.layout.num_controls:
            return []
        drift = self.compute.sent(self.layout.controls(weights) - personal[OWN_CONTROL].numpy())
        shapes = self.layout.shapes[: len(self.layout.shared_names)]
        parts = drift.split([math.prod(shape) for shape in shapes])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _new_control(
        self, delta: np.ndarray, weights: np.ndarray, personal: PersonalState, *, steps: int, round_number: int
    ) -> PersonalState:
        """The hospital's own control variate after training; its change goes into ``delta`` (SCAFFOLD, option II)."""
        if not self.layout.num_controls:
            return {}
        change = self.layout.controls(delta)
        walked = steps * self.training.learning_rate_in(round_number)
        change[:] = -delta[: self.layout.num_shared] / walked - self.layout.controls(weights) if walked else 0
        return {OWN_CONTROL: personal[OWN_CONTROL] + torch.from_numpy(change)}


@contextmanager
def _only(model: nn.Module, names: frozenset[str]) -> Iterator[None]:
    """Train the named parameters and no others; batch normalisation goes on measuring."""
    flags = [(parameter, parameter.requires_grad, name in names) for name, parameter in model.named_parameters()]
    for parameter, _, trained in flags:
        parameter.requires_grad_(trained)
    try:
        yield
    finally:
        for parameter, flag, _ in flags:
            parameter.requires_grad_(flag)


def _own_draws(generator: torch.Generator) -> AbstractContextManager[None]:
    """Let layers that draw (dropout, drop path) do so from a stream beside ``generator``, which deals the batches."""
    return lent_stream((generator.initial_seed() + 1) % 2**63)


def _class_balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """Rows of at most about ``count`` scans, as many of every class, spread evenly over its own; of few some twice."""
    if not len(labels):
        return np.zeros(0, np.int64)
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    each = min(-(-count // len(rows)), max(map(len, rows)))
    return np.concatenate([of_class[np.arange(each) * len(of_class) // each] for of_class in rows])
