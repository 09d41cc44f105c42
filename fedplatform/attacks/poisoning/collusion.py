"""Collusions with a fixed recipe: a little is enough, inner product manipulation, and the mimic."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch

from fedplatform.attacks.poisoning.attack import Situation
from fedplatform.attacks.poisoning.moments import gram_of, mean_of, std_of


@dataclass(frozen=True)
class LittleIsEnough:
    """ALIE (Baruch et al., NeurIPS 2019): mean - z * std in each coordinate, too little for any rule to call strange.

    The default ``z`` is the one usual in benchmarks: the paper's own counts on many attackers, and for 3 of 10 makes
    .18, which harms no rule. ``z`` None takes the paper's: n hospitals, f of them attackers, need s = floor(n/2) + 1 -
    f honest supporters to be the majority, and z = Phi^-1((n - f - s) / (n - f)) leaves that many honest updates
    farther out. Raises ValueError where that z is not positive and finite (too few attackers to hide among, or more
    than half), instead of not attacking.
    """

    z: float | None = 1.5

    def collude(self, honest: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the honest updates (h, d), h >= 2, to what every attacker sends (d,)."""
        if len(honest) < 2:
            raise ValueError(f"ALIE needs at least 2 honest updates for a std, got {len(honest)}")
        z = supported_z(situation.num_hospitals, situation.num_byzantine) if self.z is None else self.z
        mean = mean_of(honest)
        return (mean - z * std_of(honest, mean)).to(honest.dtype)


def supported_z(n: int, f: int) -> float:
    """The z of Baruch et al. for f attackers among n hospitals; n=50, f=24 gives 1.43."""
    supporters = n // 2 + 1 - f
    if not 0 < 2 * supporters < n - f:
        raise ValueError(
            f"the z of ALIE needs 0 < 2 * supporters < n - f, got supporters={supporters}, n={n}, f={f}; set z by hand"
        )
    return NormalDist().inv_cdf((n - f - supporters) / (n - f))


@dataclass(frozen=True)
class InnerProduct:
    """Inner product manipulation (Xie et al., UAI 2019): -scale * mean, so that the step points away from descent.

    A scale below 1 hides near zero from Krum and the median; a plain mean turns round where scale > h / f.
    """

    scale: float = 0.5

    def collude(self, honest: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the honest updates (h, d), h >= 1, to what every attacker sends (d,)."""
        if len(honest) < 1:
            raise ValueError("inner product manipulation needs at least 1 honest update, got 0")
        return (-self.scale * mean_of(honest)).to(honest.dtype)


@dataclass(frozen=True)
class Mimic:
    """The mimic (Karimireddy et al., ICLR 2022): all attackers copy one honest hospital, and so give it f + 1 votes.

    ``hospital`` is its row among the honest updates, the same in every round: to copy now one and now another gives
    each a turn and does not harm. The paper's choice of the row is :meth:`farthest_out`.
    """

    hospital: int = 0

    @staticmethod
    def farthest_out(honest: torch.Tensor) -> Mimic:
        """The mimic of the hospital farthest out along the direction of largest variance of honest updates (h, d).

        The paper gathers that direction over a warm-up of many rounds; here one round is the warm-up.
        """
        # The top eigenvector of the Gram matrix holds what each hospital has of the principal direction. Rounded,
        # because the last bit must not decide between two hospitals that are equally far out.
        _, vectors = np.linalg.eigh(gram_of(honest, mean_of(honest)))
        return Mimic(hospital=int(np.argmax(np.abs(vectors[:, -1]).round(9))))

    def collude(self, honest: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the honest updates (h, d), h > hospital, to what every attacker sends (d,)."""
        if not 0 <= self.hospital < len(honest):
            raise ValueError(f"Mimic needs 0 <= hospital < {len(honest)} honest updates, got hospital={self.hospital}")
        return honest[self.hospital].clone()
