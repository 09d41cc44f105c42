"""Augmentation: the same scans, a little different every time they are trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch.nn import functional


@runtime_checkable
class Augmentation(Protocol):
    """Changes images (n, c, h, w) in [0, 1], each by draws of its own, into as many of the same form."""

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor: ...


@dataclass(frozen=True)
class Anatomy:
    """What may differ between two scans of the same finding: how the head lies, and how bright the scanner shows it.

    Each scan is flipped or not and turned by quarters, then by up to ``rotation`` degrees, scaled by up to 1 +-
    ``scale``, shifted by up to ``shift`` of half its side; then its gamma changes by up to e^+-``contrast`` and its
    brightness by up to 1 +- ``brightness``. Everything is uniform; one interpolation does all the moving.
    """

    rotation: float = 15.0
    scale: float = 0.12
    shift: float = 0.08
    contrast: float = 0.3
    brightness: float = 0.15

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Square images only."""
        n = len(images)

        def uniform(*shape: int) -> torch.Tensor:
            return 2 * torch.rand(n, *shape, generator=generator) - 1

        quarters = torch.randint(4, (n,), generator=generator) * (math.pi / 2)
        mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
        angle = quarters + math.radians(self.rotation) * uniform()
        scale = 1 + self.scale * uniform()
        place = torch.empty(n, 2, 3)
        place[:, 0, 0], place[:, 0, 1] = mirror * scale * angle.cos(), -mirror * scale * angle.sin()
        place[:, 1, 0], place[:, 1, 1] = scale * angle.sin(), scale * angle.cos()
        place[:, :, 2] = self.shift * uniform(2)
        grid = functional.affine_grid(place.to(images), list(images.shape), align_corners=False)
        moved = functional.grid_sample(images, grid, align_corners=False)
        gamma = torch.exp(self.contrast * uniform(1, 1, 1)).to(images)
        light = 1 + self.brightness * uniform(1, 1, 1).to(images)
        # The slope of a power is without bound at black.
        shown = moved.clamp(1e-4, 1) ** gamma * light
        return shown.clamp(0, 1).contiguous(memory_format=torch.channels_last)


AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {"anatomy": Anatomy}
