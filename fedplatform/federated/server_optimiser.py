"""The server's step from what the rule made of the updates: the aggregate itself, or that taken as a gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

Moments = Mapping[str, np.ndarray]  # by name, each (d,) float32: what an optimiser carries from round to round


@runtime_checkable
class ServerOptimiser(Protocol):
    """Turns the aggregate (d,) of a round into the step (d,) that the server takes, both float32.

    Only the shared weights go through it; batch normalisation that is shared is averaged. A round without effect does
    not reach it, so the weights and the moments stay as they are.
    """

    def step(self, aggregate: np.ndarray, moments: Moments) -> tuple[np.ndarray, Moments]:
        """The step, and the moments for the next round; ``moments`` is empty in the first."""
        ...


@dataclass(frozen=True)
class Average:
    """The aggregate as it is (FedAvg, McMahan et al., AISTATS 2017), or ``learning_rate`` times it.

    >>> Average().step(np.float32([1, 2]), {})[0].tolist()
    [1.0, 2.0]
    """

    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        _check(self.learning_rate)

    def step(self, aggregate: np.ndarray, moments: Moments) -> tuple[np.ndarray, Moments]:
        """The aggregate; no moments."""
        return (aggregate if self.learning_rate == 1 else np.float32(self.learning_rate) * aggregate), moments


@dataclass(frozen=True)
class FedAvgM:
    """Server momentum v = momentum v + aggregate (Hsu et al., 2019); the step is ``learning_rate`` v.

    >>> first, moments = FedAvgM(momentum=0.5).step(np.float32([4.0]), {})
    >>> FedAvgM(momentum=0.5).step(np.float32([0.0]), moments)[0].tolist()
    [2.0]
    """

    learning_rate: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check(self.learning_rate, momentum=self.momentum)

    def step(self, aggregate: np.ndarray, moments: Moments) -> tuple[np.ndarray, Moments]:
        """Along the velocity."""
        velocity = aggregate.copy()
        if moments:
            velocity += np.float32(self.momentum) * moments["velocity"]
        return np.float32(self.learning_rate) * velocity, {"velocity": velocity}


@dataclass(frozen=True)
class _Adaptive:
    """m = beta1 m + (1 - beta1) aggregate; the step is learning_rate m / (sqrt(v) + tau), v from tau^2 on.

    Reddi et al. (ICLR 2021) try tau of 1e-3 first and choose the learning rate on validation scans; without bias
    correction, as they.
    """

    learning_rate: float = 0.01
    beta1: float = 0.9
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check(self.learning_rate, beta1=self.beta1)
        if self.tau <= 0:
            raise ValueError(f"needs tau > 0, got {self.tau}")

    def step(self, aggregate: np.ndarray, moments: Moments) -> tuple[np.ndarray, Moments]:
        """Along the first moment, each weight by its own rate."""
        beta1, tau = np.float32(self.beta1), np.float32(self.tau)
        first = (1 - beta1) * aggregate
        if moments:
            first += beta1 * moments["first"]
        before = moments["second"] if moments else np.full_like(aggregate, tau**2)
        second = self._second(before, aggregate * aggregate)
        step: np.ndarray = np.float32(self.learning_rate) * first / (np.sqrt(second) + tau)
        return step, {"first": first, "second": second}

    def _second(self, before: np.ndarray, square: np.ndarray) -> np.ndarray:
        raise NotImplementedError


@dataclass(frozen=True)
class FedAdagrad(_Adaptive):
    """v = v + aggregate^2, and no first moment unless asked for (FedAdagrad, Reddi et al., ICLR 2021)."""

    learning_rate: float = 0.1
    beta1: float = 0.0

    def _second(self, before: np.ndarray, square: np.ndarray) -> np.ndarray:
        second: np.ndarray = before + square
        return second


@dataclass(frozen=True)
class _Forgetting(_Adaptive):
    """v forgets: ``beta2`` of it is left after a round."""

    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.learning_rate, beta2=self.beta2)


class FedAdam(_Forgetting):
    """v = beta2 v + (1 - beta2) aggregate^2 (FedAdam, Reddi et al., ICLR 2021)."""

    def _second(self, before: np.ndarray, square: np.ndarray) -> np.ndarray:
        second: np.ndarray = np.float32(self.beta2) * before + np.float32(1 - self.beta2) * square
        return second


class FedYogi(_Forgetting):
    """v = v - (1 - beta2) aggregate^2 sign(v - aggregate^2) (FedYogi, Reddi et al., ICLR 2021)."""

    def _second(self, before: np.ndarray, square: np.ndarray) -> np.ndarray:
        second: np.ndarray = before - np.float32(1 - self.beta2) * square * np.sign(before - square)
        return second


SERVER_OPTIMISERS: dict[str, Callable[..., ServerOptimiser]] = {
    "average": Average,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
}


def _check(learning_rate: float, **decays: float) -> None:
    if learning_rate <= 0:
        raise ValueError(f"needs learning_rate > 0, got {learning_rate}")
    for name, decay in decays.items():
        if not 0 <= decay < 1:
            raise ValueError(f"needs 0 <= {name} < 1, got {decay}")
