"""Carlini-Wagner: the smallest L2 perturbation that fools, by Adam in a space without borders."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedplatform.attacks.evasion.ascent import Highest, mean_slope
from fedplatform.attacks.evasion.attack import EvasionAttack, Target, check_settings
from fedplatform.attacks.evasion.losses import loss_of
from fedplatform.attacks.evasion.projection import each, norm_of, project

INSIDE = 0.999999  # black and white lie at infinity otherwise


@dataclass(frozen=True)
class CarliniWagner(EvasionAttack):
    """CW-L2 (Carlini and Wagner, S&P 2017) with confidence 0.

    Minimises ||delta||^2 + c * relu(-margin) over x = (tanh(w) + 1) / 2, with c found by bisection for each scan.
    Hands back the smallest perturbation that fools, or where none did the last one, cut to ``epsilon`` (L2).
    """

    epsilon: float
    steps: int = 100
    searches: int = 6
    learning_rate: float = 0.01
    first_weight: float = 1.0  # c of the first search
    eot: int = 1

    def __post_init__(self) -> None:
        check_settings(self, "steps", "searches", "eot", norm="l2")

    def perturb(
        self, target: Target, images: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator
    ) -> torch.Tensor:
        """Attacked images within ``epsilon`` (L2); the attack itself draws nothing."""
        lead = loss_of("margin", target, labels)
        nearest = Highest(images)  # of minus the distance
        weight = images.new_full((len(images),), self.first_weight)
        low, high = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
        attacked = images
        for _ in range(self.searches):
            free = torch.atanh((2 * images - 1) * INSIDE)
            adam = torch.optim.Adam([free], lr=self.learning_rate)
            hit = torch.zeros_like(weight, dtype=torch.bool)
            for _ in range(self.steps):
                attacked = (torch.tanh(free) + 1) / 2
                gap, slope = mean_slope(lead, attacked, self.eot)
                fooled = gap > 0
                hit |= fooled
                nearest.offer(attacked, torch.where(fooled, -norm_of(attacked - images, "l2"), -torch.inf))
                pixel_slope = 2 * (attacked - images) - each(weight * ~fooled) * slope
                free.grad = pixel_slope * 2 * attacked * (1 - attacked)
                adam.step()
            high = torch.where(hit, weight, high)
            low = torch.where(hit, low, weight)
            weight = torch.where(torch.isinf(high), 10 * weight, (low + high) / 2)
        found = each(nearest.values > -torch.inf)
        return project(torch.where(found, nearest.images, attacked), images, self.epsilon, "l2")
