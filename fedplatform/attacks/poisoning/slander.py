"""Slander: attackers who have an honest hospital, their victim, taken for one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fedplatform.attacks.poisoning.attack import Situation
from fedplatform.attacks.poisoning.moments import dot


@dataclass(frozen=True)
class SlanderInGroups:
    """Slander in group testing (after the bad-mouthing of Sun et al., INFOCOM 2006): only the victim's groups are bad.

    Under secure aggregation an attacker flips signs, -scale * g, where its ``victim`` is in its own group, and is
    honest everywhere else. Whoever infers single hospitals from groups finds the victim in every spoiled one.
    ``victim`` is its place among the honest hospitals. Without secure aggregation it is honest. Raises ValueError where
    there is no such hospital.
    """

    victim: int = 0
    scale: float = 10.0

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the own update (d,) to what is sent (d,)."""
        if not situation.group:
            return own.clone()
        if not 0 <= self.victim < len(situation.honest_ids):
            raise ValueError(
                f"SlanderInGroups needs 0 <= victim < {len(situation.honest_ids)} honest hospitals, got {self.victim}"
            )
        return -self.scale * own if situation.honest_ids[self.victim] in situation.group else own.clone()


@dataclass(frozen=True)
class SlanderByCopying:
    """Slander by copying: each attacker sends the victim's update with slight noise, so that it looks like a Sybil.

    It turns the rules that punish likeness, such as FoolsGold (Fung et al., RAID 2020), against an honest hospital.
    ``victim`` is its row among the honest updates; the noise is normal, of ``noise`` times the update's length, and
    each attacker has its own. Raises ValueError where that row is not there.
    """

    victim: int = 0
    noise: float = 0.01

    def collude(self, honest: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the honest updates (h, d), h > victim, to what each attacker sends (num_byzantine, d)."""
        if not 0 <= self.victim < len(honest):
            raise ValueError(f"SlanderByCopying needs 0 <= victim < {len(honest)} honest updates, got {self.victim}")
        copied = honest[self.victim]
        drawn = torch.randn(situation.num_byzantine, len(copied), generator=situation.generator)
        double = copied.double()
        sigma = self.noise * math.sqrt(dot(double, double) / max(len(copied), 1))
        return (copied + sigma * drawn).to(honest.dtype)
