"""Gradient attacks with a fixed step: FGSM, PGD and PGD with momentum."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedplatform.attacks.evasion.ascent import ascend
from fedplatform.attacks.evasion.attack import EvasionAttack, Target, check_settings
from fedplatform.attacks.evasion.losses import Loss, check_loss, loss_of


@dataclass(frozen=True)
class FGSM(EvasionAttack):
    """One step of full length along the sign of the gradient (Goodfellow et al., ICLR 2015)."""

    epsilon: float
    eot: int = 1

    def __post_init__(self) -> None:
        check_settings(self, "eot")

    def perturb(
        self, target: Target, images: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator
    ) -> torch.Tensor:
        """Attacked images within ``epsilon`` (linf)."""
        return ascend(
            loss_of("cross_entropy", target, labels),
            images,
            epsilon=self.epsilon,
            stepsize=self.epsilon,
            steps=1,
            eot=self.eot,
            random_start=False,
            generator=generator,
        )


@dataclass(frozen=True)
class PGD(EvasionAttack):
    """Projected gradient ascent (Madry et al., ICLR 2018); ``stepsize`` None is 2.5 * epsilon / steps.

    ``eot`` gradients are averaged in each step, for targets that draw noise. Of several ``restarts`` each scan keeps
    the one with the highest loss.
    """

    epsilon: float
    steps: int = 20
    stepsize: float | None = None
    eot: int = 1
    restarts: int = 1
    loss: Loss = "cross_entropy"
    random_start: bool = True

    def __post_init__(self) -> None:
        check_settings(self, "steps", "eot", "restarts")
        check_loss(self.loss)

    def perturb(
        self, target: Target, images: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator
    ) -> torch.Tensor:
        """Attacked images within ``epsilon`` (linf)."""
        return ascend(
            loss_of(self.loss, target, labels),
            images,
            epsilon=self.epsilon,
            stepsize=2.5 * self.epsilon / self.steps if self.stepsize is None else self.stepsize,
            steps=self.steps,
            eot=self.eot,
            random_start=self.random_start,
            restarts=self.restarts,
            generator=generator,
        )


@dataclass(frozen=True)
class MomentumPGD(EvasionAttack):
    """The momentum iterative method (MI-FGSM, Dong et al., CVPR 2018): steps of epsilon / steps; it transfers well."""

    epsilon: float
    steps: int = 10
    momentum: float = 1.0
    eot: int = 1

    def __post_init__(self) -> None:
        check_settings(self, "steps", "eot")

    def perturb(
        self, target: Target, images: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator
    ) -> torch.Tensor:
        """Attacked images within ``epsilon`` (linf)."""
        return ascend(
            loss_of("cross_entropy", target, labels),
            images,
            epsilon=self.epsilon,
            stepsize=self.epsilon / self.steps,
            steps=self.steps,
            eot=self.eot,
            momentum=self.momentum,
            random_start=False,
            generator=generator,
        )
