"""The weak old defences, to be measured beside the others: blur, JPEG, fewer grey levels.

They are purifiers that know no depth and no noise. The gradient of a rounding is zero and would stop a naive attacker
only, so the two that round pass the gradient on as it is (BPDA, Athalye et al., ICML 2018).
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional


@dataclass(frozen=True)
class GaussianBlur:
    """A Gaussian of ``sigma`` pixels, cut at three sigmas, the border repeated (Xu et al., NDSS 2018)."""

    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"GaussianBlur needs sigma > 0, got {self.sigma}")

    def __call__(self, images: torch.Tensor, depth: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """See :class:`fedplatform.defence.purifier.Purifier`."""
        reach = int(3 * self.sigma + 0.5)
        offsets = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
        weights = torch.exp(-(offsets**2) / (2 * self.sigma**2))
        weights = weights / weights.sum()
        channels = images.shape[1]
        down = weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
        padded = functional.pad(images, (reach,) * 4, mode="replicate")
        blurred = functional.conv2d(padded, down, groups=channels)
        return functional.conv2d(blurred, down.transpose(2, 3), groups=channels)


@dataclass(frozen=True)
class Jpeg:
    """Stores and reads the scan as a JPEG of ``quality`` 1 to 95 (Dziugaite et al., 2016), by Pillow."""

    quality: int = 75

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(f"Jpeg needs quality from 1 to 95, got {self.quality}")

    def __call__(self, images: torch.Tensor, depth: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """See :class:`fedplatform.defence.purifier.Purifier`; one or three channels."""
        pixels = (images.detach().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        stored = np.stack([self._stored(scan) for scan in pixels])
        return _straight_through(images, torch.from_numpy(stored).permute(0, 3, 1, 2).to(images) / 255)

    def _stored(self, pixels: np.ndarray) -> np.ndarray:
        """What is left of uint8 pixels (h, w, 1 or 3)."""
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=self.quality)
        return np.asarray(Image.open(file)).reshape(pixels.shape)


@dataclass(frozen=True)
class BitDepth:
    """Rounds every pixel to 2^``bits`` evenly spaced levels (feature squeezing, Xu et al., NDSS 2018)."""

    bits: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise ValueError(f"BitDepth needs bits from 1 to 16, got {self.bits}")

    def __call__(self, images: torch.Tensor, depth: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """See :class:`fedplatform.defence.purifier.Purifier`."""
        highest = 2**self.bits - 1
        return _straight_through(images, (images.detach() * highest).round() / highest)


def _straight_through(images: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The ``rounded`` values with the gradient of ``images``."""
    return rounded + (images - images.detach())
