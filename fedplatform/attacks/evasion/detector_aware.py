"""Attacks that know the detector: fool the classifier unnoticed, or have clean scans flagged."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedplatform.attacks.evasion.apgd import climb
from fedplatform.attacks.evasion.ascent import Highest, Objective, ascend
from fedplatform.attacks.evasion.attack import EvasionAttack, Score, Target, check_settings
from fedplatform.attacks.evasion.losses import margin

FLAGGED = 1e4  # a flagged scan ranks below every unflagged one, whatever its margin


@dataclass(frozen=True)
class DetectorAware(EvasionAttack):
    """Margin minus ``penalty`` times what the anomaly score has above the detector's threshold (Tramer et al., 2020).

    Climbs margin(target(x), y) - penalty * relu(score(x) - threshold) as APGD does, from the scan itself. What penalty
    works depends on the score's units, so each of the ``searches`` multiplies it by ten; of all images met, each scan
    keeps the widest margin among those below the threshold. The target may be the full defence, or the bare
    classifier to which an unflagged scan goes.
    """

    epsilon: float
    score: Score
    threshold: float
    penalty: float = 1.0
    searches: int = 4
    steps: int = 40
    eot: int = 1

    def __post_init__(self) -> None:
        check_settings(self, "searches", "steps", "eot")

    def perturb(
        self, target: Target, images: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator
    ) -> torch.Tensor:
        """Attacked images within ``epsilon`` (linf); the attack itself draws nothing."""
        highest = Highest(images)
        for search in range(self.searches):
            run = climb(
                self._objective(target, labels, self.penalty * 10**search),
                images,
                images,
                epsilon=self.epsilon,
                norm="linf",
                length=self.epsilon / 2,  # a full step is flagged at once
                steps=self.steps,
                eot=self.eot,
            )
            highest.offer(run.images, run.values)
        return highest.images

    def _objective(self, target: Target, labels: torch.Tensor, penalty: float) -> Objective:
        def objective(attacked: torch.Tensor) -> torch.Tensor:
            excess = (self.score(attacked) - self.threshold).relu()
            # The constant has no gradient: it ranks, and does not steer.
            return margin(target(attacked), labels) - penalty * excess - FLAGGED * (excess > 0)

        return objective


@dataclass(frozen=True)
class Flood(EvasionAttack):
    """Denial of service: push scans over the threshold by raising the anomaly score itself, whatever the answer."""

    epsilon: float
    score: Score
    steps: int = 20
    eot: int = 1

    def __post_init__(self) -> None:
        check_settings(self, "steps", "eot")

    def perturb(
        self, target: Target, images: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator
    ) -> torch.Tensor:
        """Images within ``epsilon`` (linf) with the highest score that was met."""
        return ascend(
            self.score,
            images,
            epsilon=self.epsilon,
            stepsize=2.5 * self.epsilon / self.steps,
            steps=self.steps,
            eot=self.eot,
            keep_best=True,
            generator=generator,
        )
