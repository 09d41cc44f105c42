"""Directed deviation: as far against the honest direction as Krum, or a trimmed mean, lets through."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from fedplatform.attacks.poisoning.attack import Situation
from fedplatform.attacks.poisoning.moments import mean_of, products_of
from fedplatform.core.vectors import distances_from, gram_matrix

SMALLEST = 1e-5  # of the first length tried: where the paper stops halving


@dataclass(frozen=True)
class FangKrum:
    """Directed deviation against Krum (Fang et al., USENIX Security 2020): the longest -lambda * sign(mean) it takes.

    From the paper's upper bound lambda is halved until Krum, told the true number of attackers, chooses the forged
    update, which all attackers send. Where it never does, the last and smallest is sent. The paper takes the sign of
    Krum's own step; that of the mean is the same direction, and needs no rule.
    """

    def collude(self, honest: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the honest updates (h, d), h >= 2, to what every attacker sends (d,)."""
        if len(honest) < 2:
            raise ValueError(f"Fang's attack on Krum needs at least 2 honest updates, got {len(honest)}")
        h, f = len(honest), situation.num_byzantine
        mean = mean_of(honest)
        signs = mean.sign()
        size = float(signs.abs().sum())
        if size == 0 or not bool(mean.isfinite().all()):
            return mean.to(honest.dtype)
        gram = gram_matrix(honest.numpy())
        along = products_of(signs[None].to(honest.dtype), honest)[0]
        among = distances_from(gram)
        neighbours = max(h - 2, 1)  # n - f - 2
        nearest = float(np.sort(among, axis=1)[:, 1 : neighbours + 1].sum(axis=1).min())
        longest = math.sqrt(nearest / (max(h - f - 1, 1) * size)) + math.sqrt(float(np.diag(gram).max()) / size)
        length = longest
        while length > SMALLEST * longest:
            to_forged = np.maximum(length**2 * size + 2 * length * along + np.diag(gram), 0.0)
            if _krum_takes(among, to_forged, f=f, neighbours=neighbours):
                break
            length /= 2
        return (-length * signs).to(honest.dtype)


def _krum_takes(among: np.ndarray, to_forged: np.ndarray, *, f: int, neighbours: int) -> bool:
    """Whether Krum prefers f equal forged updates at these squared distances (h,) to honest ones (h, h) apart."""
    forged = np.sort(np.concatenate([np.zeros(f - 1), to_forged]))[:neighbours].sum()
    own = np.concatenate([among, np.repeat(to_forged[:, None], f, axis=1)], axis=1)
    others = np.sort(own, axis=1)[:, 1 : neighbours + 1].sum(axis=1)  # without the zero to itself
    return bool(forged < others.min())


@dataclass(frozen=True)
class FangTrimmedMean:
    """Directed deviation against a trimmed mean or a median (Fang et al., USENIX Security 2020).

    In each coordinate, attackers send values just beyond the honest extreme on the side away from the mean's sign: up
    to ``reach`` times as far from zero, or as near to it, drawn at random. What is trimmed then is mostly honest. The
    paper does so with weights; here it is done with updates. Raises ValueError unless reach > 1.
    """

    reach: float = 2.0

    def __post_init__(self) -> None:
        if not self.reach > 1:
            raise ValueError(f"Fang's attack on a trimmed mean needs reach > 1, got {self.reach}")

    def collude(self, honest: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the honest updates (h, d), h >= 1, to what each attacker sends (num_byzantine, d)."""
        if len(honest) < 1:
            raise ValueError("Fang's attack on a trimmed mean needs at least 1 honest update, got 0")
        rises = mean_of(honest) > 0
        edge = torch.where(rises, honest.min(dim=0).values, honest.max(dim=0).values)
        # Away from zero where the edge lies on the wrong side of it, else towards it.
        factor = torch.where(rises == (edge > 0), 1 / self.reach, self.reach)
        drawn = torch.rand(situation.num_byzantine, honest.shape[1], generator=situation.generator)
        return edge * (1 + (factor - 1) * drawn)
