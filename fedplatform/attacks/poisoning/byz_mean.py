"""ByzMean: some attackers send an attack, and the others move the mean of all onto it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedplatform.attacks.poisoning.attack import Situation
from fedplatform.attacks.poisoning.collusion import LittleIsEnough
from fedplatform.attacks.poisoning.moments import mean_of


@dataclass(frozen=True)
class ByzMean:
    """ByzMean (Xu et al., ICDCS 2022): the plain mean lands exactly where half of the attackers point.

    The first f // 2 attackers send ALIE's mean - z * std; each other one sends what makes the mean of all updates that
    same vector. So a mean takes ALIE's step in full, however few the attackers are. ``z`` as in
    :class:`~fedplatform.attacks.poisoning.collusion.LittleIsEnough`, for which at least two honest updates are needed.
    """

    z: float = 3.0

    def collude(self, honest: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the honest updates (h, d), h >= 2, to what each attacker sends (num_byzantine, d)."""
        pointing = LittleIsEnough(z=self.z).collude(honest, situation)
        h, f = len(honest), situation.num_byzantine
        followers, movers = f // 2, f - f // 2
        aim = pointing.double()
        moving = aim + (h / movers) * (aim - mean_of(honest))
        return torch.stack([pointing] * followers + [moving.to(honest.dtype)] * movers)
