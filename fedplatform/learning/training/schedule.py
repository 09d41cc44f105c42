"""How the learning rate changes from round to round."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """The share of the learning rate, 0 to 1, with which hospitals train in a round."""

    def share(self, round_number: int, *, rounds: int) -> float:
        """Of round ``round_number``, from 1, of ``rounds`` in all."""
        ...


@dataclass(frozen=True)
class _AfterWarmup:
    """The first ``warmup`` rounds climb in equal steps: pre-trained weights and adaptive optimisers start softly."""

    warmup: int = 0

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"needs warmup >= 0 rounds, got {self.warmup}")

    def share(self, round_number: int, *, rounds: int) -> float:
        """The share of the learning rate in a round."""
        if round_number <= self.warmup:
            return round_number / (self.warmup + 1)
        return self._share(round_number - self.warmup, max(1, rounds - self.warmup))

    def _share(self, round_number: int, rounds: int) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Cosine(_AfterWarmup):
    """It falls along a half cosine, so that the last rounds settle (Loshchilov and Hutter, ICLR 2017).

    >>> [round(Cosine().share(number, rounds=4), 2) for number in (1, 2, 3, 4)]
    [1.0, 0.85, 0.5, 0.15]
    """

    def _share(self, round_number: int, rounds: int) -> float:
        done = min(round_number - 1, rounds) / rounds
        return (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Constant(_AfterWarmup):
    """It stays as it is.

    >>> [Constant(warmup=1).share(number, rounds=4) for number in (1, 2, 3)]
    [0.5, 1.0, 1.0]
    """

    def _share(self, round_number: int, rounds: int) -> float:  # noqa: ARG002
        return 1.0


@dataclass(frozen=True)
class Step(_AfterWarmup):
    """It is multiplied by ``factor`` after every ``every`` rounds.

    >>> [Step(every=2, factor=0.5).share(number, rounds=6) for number in (1, 2, 3, 4, 5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    every: int = 10
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1 or not 0 < self.factor <= 1:
            raise ValueError(f"needs every >= 1 and 0 < factor <= 1, got {self.every} and {self.factor}")

    def _share(self, round_number: int, rounds: int) -> float:  # noqa: ARG002
        return float(self.factor ** ((round_number - 1) // self.every))


SCHEDULES: dict[str, Callable[..., Schedule]] = {"cosine": Cosine, "constant": Constant, "step": Step}
