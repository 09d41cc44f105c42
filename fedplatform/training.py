"""Local training in a hospital: FedAvg, FedProx, FedBN and FedBN-P, and the prediction that goes with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedplatform.models import Classifier, ClassifierBuilder
from fedplatform.parameters import BATCH_NORM, ParameterLayout
from fedplatform.seeding import torch_generator

PREDICTION_BATCH = 128
SETTLING_SCANS = 128  # enough for a mean and a variance
PersonalState = Mapping[str, torch.Tensor]


@runtime_checkable
class Algorithm(Protocol):
    """What tells one local algorithm from another: the proximal strength, and who keeps the batch normalisation."""

    @property
    def mu(self) -> float: ...

    @property
    def personal_batch_norm(self) -> bool: ...


@dataclass(frozen=True)
class FedAvg:
    """Plain local SGD; everything is shared (McMahan et al., AISTATS 2017)."""

    @property
    def mu(self) -> float:
        """No proximal term."""
        return 0.0

    @property
    def personal_batch_norm(self) -> bool:
        """Batch normalisation is shared."""
        return False


@dataclass(frozen=True)
class FedProx:
    """Local SGD that is pulled back to the broadcast weights by mu/2 ||w - w_t||^2 (Li et al., MLSys 2020)."""

    mu: float = 0.01

    @property
    def personal_batch_norm(self) -> bool:
        """Batch normalisation is shared."""
        return False


@dataclass(frozen=True)
class FedBN:
    """Batch normalisation, statistics and affine, never leaves the hospital (Li et al., ICLR 2021)."""

    @property
    def mu(self) -> float:
        """No proximal term."""
        return 0.0

    @property
    def personal_batch_norm(self) -> bool:
        """Batch normalisation is personal."""
        return True


@dataclass(frozen=True)
class FedBNP:
    """FedBN with the proximal term on all shared weights (FedBN-P of OptiGradTrust, arXiv 2507.23638)."""

    mu: float = 0.01

    @property
    def personal_batch_norm(self) -> bool:
        """Batch normalisation is personal."""
        return True


ALGORITHMS: dict[str, type[FedAvg | FedProx | FedBN | FedBNP]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedbn": FedBN,
    "fedbn_p": FedBNP,
}


@dataclass(frozen=True)
class LocalTraining:
    """Everything that a hospital must know to train: the network, the algorithm and its budget in one round."""

    model: ClassifierBuilder
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

    def learning_rate_in(self, round_number: int) -> float:
        """The step size of a round: it falls along a half cosine, so that the last rounds settle (Loshchilov, 2017)."""
        done = min(round_number - 1, self.rounds) / self.rounds
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


class Stopped(Exception):  # noqa: N818 - an order that was obeyed, not an error
    """Training was told to stop before it was done."""


class Trainer:
    """One model in memory, lent to one hospital after another: state goes in and comes out.

    A hospital's own part of the state (its batch normalisation) is an argument and a result, so a process that serves
    a hundred hospitals holds one model.
    """

    def __init__(self, training: LocalTraining) -> None:
        self.training = training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_generator(training.seed, "initial weights").initial_seed())
            body = training.model(channels=training.channels, num_classes=training.num_classes, size=training.size)
        # channels_last is 10 % faster for the convolutions of a CPU and the same numbers.
        self.model: nn.Module = Classifier(body).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.layout = ParameterLayout.of(self.model, personal_batch_norm=training.algorithm.personal_batch_norm)
        self.initial_weights = self.layout.flatten(self.model)
        self.initial_personal = self._personal()

    def _personal(self) -> PersonalState:
        state = self.model.state_dict()
        return {name: state[name].clone() for name in self.layout.personal}

    def load(self, weights: np.ndarray, personal: PersonalState) -> None:
        """Put the broadcast weights (d,) and one hospital's personal state into the model."""
        self.layout.load(weights, self.model)
        state = self.model.state_dict()
        for name, value in personal.items():
            state[name].copy_(value)

    def fit(
        self,
        weights: np.ndarray,
        personal: PersonalState,
        *,
        images: np.ndarray,
        labels: np.ndarray,
        learning_rate: float,
        generator: torch.Generator,
        should_stop: Callable[[], bool],
    ) -> tuple[np.ndarray, PersonalState, float]:
        """Train for the local epochs and return (update (d,) float32, new personal state, mean loss).

        ``images`` are uint8 (n, c, h, w). Raises :class:`Stopped` as soon as ``should_stop()`` is true.
        """
        self.load(weights, personal)
        self.model.train()
        setting = self.training
        optimiser = torch.optim.SGD(
            self.model.parameters(),
            lr=learning_rate,
            momentum=setting.momentum,
            weight_decay=setting.weight_decay,
        )
        shared = set(self.layout.shared_names)
        pulled = [(p, p.detach().clone()) for name, p in self.model.named_parameters() if name in shared]
        losses: list[float] = []
        for _ in range(setting.epochs):
            for batch in torch.randperm(len(labels), generator=generator).split(setting.batch_size):
                if should_stop():
                    raise Stopped
                if len(batch) < 2:  # batch normalisation has no variance of one scan
                    continue
                optimiser.zero_grad()
                loss = functional.cross_entropy(
                    self.model(to_images(images[batch.numpy()])), torch.from_numpy(labels[batch.numpy()])
                )
                loss.backward()
                if setting.algorithm.mu:
                    for parameter, start in pulled:
                        # The gradient of mu/2 ||w - w_t||^2, without building that term's graph over all weights.
                        assert parameter.grad is not None
                        parameter.grad.add_(parameter.detach() - start, alpha=setting.algorithm.mu)
                optimiser.step()
                losses.append(loss.item())
        delta = self.layout.flatten(self.model) - weights
        return delta, self._personal(), float(np.mean(losses)) if losses else float("nan")

    def settle(self, weights: np.ndarray, personal: PersonalState, images: np.ndarray) -> PersonalState:
        """Measure the personal batch normalisation statistics anew: on the broadcast weights, on the hospital's scans.

        After local training they describe the hospital's own weights; the broadcast ones are an average with others',
        and under the old statistics they can be no better than chance. Affine parts keep their values. The scans are
        taken evenly from all, because many data sets come sorted by class.
        """
        few = images[np.linspace(0, len(images) - 1, min(len(images), SETTLING_SCANS)).astype(int)]
        self.load(weights, personal)
        self.model.eval()
        layers = [module for module in self.model.modules() if isinstance(module, BATCH_NORM)]
        usual = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain average over the batches
            layer.train()
        with torch.inference_mode():
            for start in range(0, len(few), PREDICTION_BATCH):
                self.model(to_images(few[start : start + PREDICTION_BATCH]))
        for layer, momentum in zip(layers, usual, strict=True):
            layer.momentum = momentum
        return self._personal()

    def predict(self, weights: np.ndarray, personal: PersonalState, images: np.ndarray) -> np.ndarray:
        """Class probabilities (n, num_classes) float32 of uint8 images (n, c, h, w)."""
        self.load(weights, personal)
        self.model.eval()
        with torch.inference_mode():
            answers = [
                functional.softmax(self.model(to_images(images[start : start + PREDICTION_BATCH])), dim=1).numpy()
                for start in range(0, len(images), PREDICTION_BATCH)
            ]
        return np.concatenate(answers) if answers else np.zeros((0, self.training.num_classes), np.float32)


def to_images(pixels: np.ndarray) -> torch.Tensor:
    """Map uint8 (n, c, h, w) to float32 images in [0, 1], laid out as the convolutions like it."""
    return torch.from_numpy(pixels.astype(np.float32) / 255).contiguous(memory_format=torch.channels_last)
