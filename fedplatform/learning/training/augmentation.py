"""Augmentation: the same scans, a little different every time they are trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch.nn import functional

from fedplatform.learning.models.symmetries import seen_from


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


@dataclass(frozen=True)
class Scanner:
    """Another patient in another scanner: :class:`Anatomy` with wider ranges, and what a machine adds.

    Then each scan is multiplied by a coil's smooth field of e^(``field`` z), z standard normal on a 4 x 4 grid; made up
    to ``sharpness`` smoother or sharper; and in a share ``hidden`` of them a box of up to a third of the side is
    painted over (DeVries & Taylor 2017). Adversarial training on few patients overfits, and this is what helps it most.
    """

    field: float = 0.15
    sharpness: float = 0.8
    hidden: float = 0.5

    anatomy: ClassVar[Anatomy] = Anatomy(rotation=20.0, scale=0.2, shift=0.12, contrast=0.5, brightness=0.25)

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Square images only."""
        n, _, side, _ = images.shape

        def uniform(low: float, high: float) -> torch.Tensor:
            return (low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)).to(images)

        shown = self.anatomy(images, generator)
        coil = torch.randn(n, 1, 4, 4, generator=generator).to(images)
        smooth = functional.interpolate(coil, size=(side, side), mode="bicubic", align_corners=False)
        shown = shown * torch.exp(self.field * smooth)
        blurred = functional.avg_pool2d(functional.pad(shown, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
        shown = shown + uniform(-self.sharpness, self.sharpness) * (blurred - shown)
        places = (torch.arange(side).to(images) + 0.5) / side
        row, column = uniform(0, 1), uniform(0, 1)
        inside_rows = (places[:, None] - row).abs() < uniform(0.05, 1 / 6)
        inside = inside_rows & ((places - column).abs() < uniform(0.05, 1 / 6)) & (uniform(0, 1) < self.hidden)
        return torch.where(inside, uniform(0, 1), shown).clamp(0, 1).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Orientation:
    """How a scan lies, and nothing that would touch its noise: flipped or not, turned by quarters."""

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Square images only."""
        drawn = torch.randint(8, (len(images),), generator=generator)
        turned = images.clone()
        for symmetry in range(8):
            rows = (drawn == symmetry).nonzero().squeeze(1).to(images.device)
            turned[rows] = seen_from(images[rows], symmetry)
        return turned


@dataclass(frozen=True)
class Mirror:
    """Flipped left to right or not: for pictures that have an upper side, as a camera's."""

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Images of any shape."""
        flipped = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
        return torch.where(flipped.to(images.device), images.flip(3), images).contiguous(
            memory_format=torch.channels_last
        )


AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
    "anatomy": Anatomy,
    "scanner": Scanner,
    "orientation": Orientation,
    "mirror": Mirror,
}
