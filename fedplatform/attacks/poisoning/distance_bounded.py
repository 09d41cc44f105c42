"""Collusions that go as far as they can without standing out by distance: Min-Max and Min-Sum.

Both are from Shejwalkar and Houmansadr (NDSS 2021), who send mean + gamma * p and halve their way to the largest gamma
that keeps the distances. Those distances are quadratics in gamma, so here the largest gamma is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from fedplatform.attacks.poisoning.attack import Situation
from fedplatform.attacks.poisoning.moments import dot, gram_of, mean_of, std_of

Direction = Literal["unit", "std", "sign"]


@dataclass(frozen=True)
class MinMax:
    """Min-Max: no honest update is farther from the forged one than the two farthest honest ones are apart.

    ``direction`` of p: ``unit`` back along the mean, ``std`` back by the spread of each coordinate, ``sign`` back by
    the sign of the mean. Which one harms most depends on model and data; the paper tries all three.
    """

    direction: Direction = "unit"

    def __post_init__(self) -> None:
        _check(self.direction)

    def collude(self, honest: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the honest updates (h, d), h >= 2, to what every attacker sends (d,)."""
        mean, p = _mean_and_perturbation(honest, self.direction)
        length = dot(p, p)
        if length == 0:
            return mean.to(honest.dtype)
        gram = gram_of(honest, mean)
        squares = np.diagonal(gram)
        diameter = np.max(squares[:, None] + squares[None, :] - 2 * gram)
        along = np.array([dot(row - mean, p) for row in honest])
        # For each i the largest root of squares_i - 2 gamma along_i + gamma^2 length = diameter, where the left side is
        # the squared distance of mean + gamma p to g_i.
        slack = np.maximum(diameter - squares, 0)
        gamma = float(np.min((along + np.sqrt(along**2 + length * slack)) / length))
        return (mean + gamma * p).to(honest.dtype)


@dataclass(frozen=True)
class MinSum:
    """Min-Sum: the forged update's summed squared distance to the honest ones is not above that of any honest one.

    ``direction`` as in :class:`MinMax`. The sum over the honest updates is h times the squared distance from their mean
    plus a constant, so the forged update ends up exactly as far from the mean as the farthest honest one.
    """

    direction: Direction = "unit"

    def __post_init__(self) -> None:
        _check(self.direction)

    def collude(self, honest: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the honest updates (h, d), h >= 2, to what every attacker sends (d,)."""
        mean, p = _mean_and_perturbation(honest, self.direction)
        length = dot(p, p)
        if length == 0:
            return mean.to(honest.dtype)
        deviations = (row - mean for row in honest)
        gamma = math.sqrt(max(dot(deviation, deviation) for deviation in deviations) / length)
        return (mean + gamma * p).to(honest.dtype)


def _check(direction: str) -> None:
    if direction not in get_args(Direction):
        raise ValueError(f"the direction is one of {', '.join(get_args(Direction))}, got {direction!r}")


def _mean_and_perturbation(honest: torch.Tensor, direction: Direction) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and p, both (d,) float64; the length of p is free, for gamma makes up for it."""
    if len(honest) < 2:
        raise ValueError(f"Min-Max and Min-Sum need at least 2 honest updates, got {len(honest)}")
    mean = mean_of(honest)
    match direction:
        case "unit":
            return mean, -mean
        case "std":
            return mean, -std_of(honest, mean)
        case "sign":
            return mean, -mean.sign()
