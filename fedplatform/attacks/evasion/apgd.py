"""AutoPGD: PGD that finds its own step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedplatform.attacks.evasion.ascent import Highest, Objective, mean_slope
from fedplatform.attacks.evasion.attack import EvasionAttack, Target, check_settings
from fedplatform.attacks.evasion.draws import normal, uniform
from fedplatform.attacks.evasion.losses import Loss, check_loss, loss_of
from fedplatform.attacks.evasion.projection import Norm, each, norm_of, project

MOMENTUM = 0.75
RISES = 0.75  # fewer steps upwards than this share, and the step is too long


@dataclass(frozen=True)
class APGD(EvasionAttack):
    """APGD (Croce and Hein, ICML 2020), the core of AutoAttack, with cross-entropy or margin.

    The difference-of-logits loss of AutoAttack needs three classes and is left out. Differs from the authors' code in
    a stochastic target: values that steer the step and choose the image are means over the ``eot`` draws, not the
    last draw. A scan keeps the image of highest loss, fooled or not.
    """

    epsilon: float
    norm: Norm = "linf"
    steps: int = 100
    eot: int = 1
    restarts: int = 1
    loss: Loss = "cross_entropy"

    def __post_init__(self) -> None:
        check_settings(self, "steps", "eot", "restarts", norm=self.norm)
        check_loss(self.loss)

    def perturb(
        self, target: Target, images: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator
    ) -> torch.Tensor:
        """Attacked images within ``epsilon`` in ``norm``."""
        objective = loss_of(self.loss, target, labels)
        highest = Highest(images)
        for _ in range(self.restarts):
            start = self._start(images, generator)
            run = climb(
                objective,
                images,
                start,
                epsilon=self.epsilon,
                norm=self.norm,
                length=2 * self.epsilon,
                steps=self.steps,
                eot=self.eot,
            )
            highest.offer(run.images, run.values)
        return highest.images

    def _start(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A random image of the ball, in L2 on its surface."""
        if self.norm == "linf":
            return project(images + self.epsilon * uniform(images.shape, images, generator), images, self.epsilon)
        noise = steepest(normal(images.shape, images, generator), self.norm)
        return project(images + self.epsilon * noise, images, self.epsilon, self.norm)


def climb(
    objective: Objective,
    images: torch.Tensor,
    start: torch.Tensor,
    *,
    epsilon: float,
    norm: Norm,
    length: float,
    steps: int,
    eot: int,
) -> Highest:
    """One run of APGD from ``start`` with steps of ``length`` at first: the highest image that each scan met.

    At checkpoints a scan that rose too seldom goes back to its highest image and halves its steps.
    """
    attacked = before = start
    value, slope = mean_slope(objective, attacked, eot)
    highest, best_slope = Highest(images), slope
    highest.offer(attacked, value)
    lengths = torch.full_like(value, length)
    rises = torch.zeros_like(value)
    halved = torch.zeros_like(value, dtype=torch.bool)
    last_best, last_check, checks = highest.values, 0, checkpoints(steps)
    for step in range(1, steps + 1):
        keep = MOMENTUM if step > 1 else 1.0
        leap = project(attacked + each(lengths) * steepest(slope, norm), images, epsilon, norm)
        moved = attacked + keep * (leap - attacked) + (1 - keep) * (attacked - before)
        before, attacked = attacked, project(moved, images, epsilon, norm)
        previous = value
        value, slope = mean_slope(objective, attacked, eot)
        rises += value > previous
        best_slope = torch.where(each(highest.offer(attacked, value)), slope, best_slope)
        if step in checks:
            stuck = ~halved & (highest.values <= last_best)
            halved = (rises < RISES * (step - last_check)) | stuck
            lengths = torch.where(halved, lengths / 2, lengths)
            attacked = torch.where(each(halved), highest.images, attacked)
            slope = torch.where(each(halved), best_slope, slope)
            value = torch.where(halved, highest.values, value)
            rises, last_best, last_check = torch.zeros_like(rises), highest.values, step
    return highest


def steepest(slope: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The direction of length one (n, c, h, w) along which a slope rises fastest."""
    return slope.sign() if norm == "linf" else slope / each(norm_of(slope, "l2").clamp_min(1e-30))


def checkpoints(steps: int) -> frozenset[int]:
    """After which steps the length is looked at: at 22 % of them, then at intervals shrinking from 19 % to 6 %."""
    shares, interval = [0.22], 0.22
    while shares[-1] < 1:
        interval = max(interval - 0.03, 0.06)
        shares.append(shares[-1] + interval)
    return frozenset(round(share * steps) for share in shares)
