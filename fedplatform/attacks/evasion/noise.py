"""The control of every attack: noise of full size that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedplatform.attacks.evasion.attack import EvasionAttack, Target, check_settings
from fedplatform.attacks.evasion.draws import signs
from fedplatform.attacks.evasion.projection import project


@dataclass(frozen=True)
class RandomNoise(EvasionAttack):
    """Each pixel goes up or down by epsilon, by a coin; what this costs is no merit of an attack."""

    epsilon: float

    def __post_init__(self) -> None:
        check_settings(self)

    def perturb(
        self, target: Target, images: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator
    ) -> torch.Tensor:
        """Noisy images within ``epsilon`` (linf)."""
        return project(images + self.epsilon * signs(images.shape, images, generator), images, self.epsilon)
