"""Sign ascent on an objective of each scan, with the gradient averaged over the target's own randomness."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fedplatform.attacks.evasion.draws import uniform
from fedplatform.attacks.evasion.projection import each, project

Objective = Callable[[torch.Tensor], torch.Tensor]
"""Images (n, c, h, w) to what the attacker wants large (n,), each of its own scan alone."""


def mean_slope(objective: Objective, images: torch.Tensor, eot: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Value (n,) and gradient (n, c, h, w) of the objective, means over ``eot`` calls.

    This is expectation over transformation (EOT; Athalye et al., ICML 2018). Parameters gather no gradient. Raises
    ValueError where a gradient is not finite: the attack would fail in silence.
    """
    values = images.new_zeros(len(images))
    slopes = torch.zeros_like(images)
    for _ in range(eot):
        place = images.detach().requires_grad_()
        with torch.enable_grad():
            value = objective(place)
            (slope,) = torch.autograd.grad(value.sum(), place)
        values += value.detach()
        slopes += slope
    if not torch.isfinite(slopes).all():
        raise ValueError("the gradient of the target is not finite")
    return values / eot, slopes / eot


@torch.no_grad()
def mean_value(objective: Objective, images: torch.Tensor, eot: int) -> torch.Tensor:
    """Value (n,) of the objective, mean over ``eot`` calls."""
    values = images.new_zeros(len(images))
    for _ in range(eot):
        values += objective(images)
    return values / eot


class Highest:
    """For each scan the image with the highest value so far."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images.clone()
        self.values = images.new_full((len(images),), -torch.inf)

    def offer(self, candidates: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Take what is better; which scans that were, (n,) bool."""
        better = values > self.values
        self.images = torch.where(each(better), candidates, self.images)
        self.values = torch.where(better, values, self.values)
        return better


def ascend(
    objective: Objective,
    images: torch.Tensor,
    *,
    epsilon: float,
    stepsize: float,
    steps: int,
    generator: torch.Generator,
    eot: int = 1,
    momentum: float = 0.0,
    random_start: bool = True,
    restarts: int = 1,
    keep_best: bool = False,
) -> torch.Tensor:
    """Images within ``epsilon`` (linf) of ``images`` (n, c, h, w) that make the objective of each large.

    ``momentum`` is the share of the last direction that is kept (Dong et al., CVPR 2018). Of several restarts each scan
    keeps the one that ends highest, and with ``keep_best`` the highest image on the way. The first start is the scan
    itself unless ``random_start``; the others are random always.
    """
    highest = Highest(images)
    for restart in range(restarts):
        attacked = images
        if random_start or restart:
            attacked = project(images + epsilon * uniform(images.shape, images, generator), images, epsilon)
        direction = torch.zeros_like(images)
        for _ in range(steps):
            value, slope = mean_slope(objective, attacked, eot)
            if keep_best:
                highest.offer(attacked, value)
            direction = momentum * direction + slope / each(slope.abs().mean(dim=(1, 2, 3)).clamp_min(1e-30))
            attacked = project(attacked + stepsize * direction.sign(), images, epsilon)
        if restarts == 1 and not keep_best:
            return attacked
        highest.offer(attacked, mean_value(objective, attacked, eot))
    return highest.images
