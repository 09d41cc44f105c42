"""FAB: the nearest image with another answer, by steps onto the linearised decision boundary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedplatform.attacks.evasion.ascent import Highest, mean_slope, mean_value
from fedplatform.attacks.evasion.attack import EvasionAttack, Target, check_settings
from fedplatform.attacks.evasion.draws import uniform
from fedplatform.attacks.evasion.losses import loss_of
from fedplatform.attacks.evasion.projection import Norm, each, norm_of, project

OVERSHOOT, BACKWARD, LARGEST_BIAS = 1.05, 0.9, 0.1  # eta, beta and alpha_max of the paper


@dataclass(frozen=True)
class FAB(EvasionAttack):
    """The fast adaptive boundary attack (Croce and Hein, ICML 2020), untargeted.

    It minimises the perturbation, whatever ``epsilon``; what is handed back is the smallest one that fools, or where
    none did the last one, cut to ``epsilon``. Takes k - 1 gradients a step for k classes.
    """

    epsilon: float
    norm: Norm = "linf"
    steps: int = 100
    eot: int = 1
    restarts: int = 1

    def __post_init__(self) -> None:
        check_settings(self, "steps", "eot", "restarts", norm=self.norm)

    def perturb(
        self, target: Target, images: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator
    ) -> torch.Tensor:
        """Attacked images within ``epsilon`` in ``norm``."""

        lead = loss_of("margin", target, labels)
        nearest = Highest(images)  # of minus the distance
        self._offer(nearest, images, images, mean_value(lead, images, self.eot) > 0)
        for restart in range(self.restarts):
            attacked = images
            if restart:
                noise = uniform(images.shape, images, generator)
                reach = self.epsilon / 2 / norm_of(noise, self.norm).clamp_min(1e-12)
                attacked = (images + each(reach) * noise).clamp(0, 1)
            for _ in range(self.steps):
                gap, slope = self._nearest_class(target, attacked, labels)
                offset = ((images - attacked) * slope).sum(dim=(1, 2, 3))
                step = to_hyperplane(attacked, gap, slope, self.norm)
                step_from_scan = to_hyperplane(images, gap + offset, slope, self.norm)
                size, size_from_scan = norm_of(step, self.norm), norm_of(step_from_scan, self.norm)
                bias = each((size / (size + size_from_scan).clamp_min(1e-12)).clamp_max(LARGEST_BIAS))
                ahead, ahead_from_scan = attacked + OVERSHOOT * step, images + OVERSHOOT * step_from_scan
                attacked = ((1 - bias) * ahead + bias * ahead_from_scan).clamp(0, 1)
                hit = mean_value(lead, attacked, self.eot) > 0
                self._offer(nearest, attacked, images, hit)
                attacked = torch.where(each(hit), images + BACKWARD * (attacked - images), attacked)
        found = each(nearest.values > -torch.inf)
        return project(torch.where(found, nearest.images, attacked), images, self.epsilon, self.norm)

    def _offer(self, nearest: Highest, attacked: torch.Tensor, images: torch.Tensor, hit: torch.Tensor) -> None:
        nearest.offer(attacked, torch.where(hit, -norm_of(attacked - images, self.norm), -torch.inf))

    def _nearest_class(
        self, target: Target, attacked: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logit difference (n,) to the wrong class whose linearised boundary is nearest, and its gradient."""
        with torch.no_grad():
            num_classes = target(attacked[:1]).shape[1]
        nearest = Highest(attacked)
        gaps = attacked.new_zeros(len(attacked))
        for turn in range(1, num_classes):
            gap, slope = mean_slope(_lead_of(target, labels, (labels + turn) % num_classes), attacked, self.eot)
            steepness = slope.abs().sum(dim=(1, 2, 3)) if self.norm == "linf" else norm_of(slope, "l2")
            gaps = torch.where(nearest.offer(slope, -gap.abs() / steepness.clamp_min(1e-12)), gap, gaps)
        return gaps, nearest.images


def _lead_of(target: Target, labels: torch.Tensor, rivals: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """By how much a rival's logit is above that of the true class."""

    def lead(images: torch.Tensor) -> torch.Tensor:
        logits = target(images)
        return (logits.gather(1, rivals[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)

    return lead


def to_hyperplane(points: torch.Tensor, gap: torch.Tensor, slope: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The smallest step (n, c, h, w) that stays in [0, 1] and solves gap + <slope, step> = 0; as far as there is room.

    Every pixel moves at its speed (1 in linf, its slope in L2) until it meets the border of [0, 1]. How far the sum has
    come is then piecewise linear and rising in the time, and sorting by the time of arrival gives each piece.
    """
    direction = -(each(gap.sign()) * slope.sign()).flatten(1)
    places, pull = points.flatten(1).double(), slope.abs().flatten(1).double()
    room = torch.where(direction > 0, 1 - places, places).clamp_min(0)
    speed = torch.ones_like(pull) if norm == "linf" else pull
    arrival, order = torch.where(pull > 0, room / speed, 0).sort(dim=1)
    done = (pull * room).gather(1, order).cumsum(dim=1)
    rate = (pull * speed).gather(1, order)
    left = rate.flip(1).cumsum(dim=1).flip(1)  # of this pixel and all that arrive later
    before = torch.cat([torch.zeros_like(done[:, :1]), done[:, :-1]], dim=1)
    wanted = gap.abs().double()[:, None]
    piece = torch.searchsorted(before + arrival * left, wanted).clamp_max(done.shape[1] - 1)
    time = (wanted - before.gather(1, piece)) / left.gather(1, piece).clamp_min(1e-300)
    time = time.clamp_min(0).minimum(arrival[:, -1:])
    step = direction * torch.minimum(time * speed, room)
    return step.to(points.dtype).view_as(points)
