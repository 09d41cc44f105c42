"""Stored pixels as the images that networks take."""

from __future__ import annotations

import numpy as np
import torch

LARGEST_USUAL = 128  # pixels a side up to which as many scans fit into memory as ever


def to_images(pixels: np.ndarray) -> torch.Tensor:
    """Map uint8 (n, c, h, w) to float32 images in [0, 1], laid out as the convolutions like it."""
    return torch.from_numpy(pixels.astype(np.float32) / 255).contiguous(memory_format=torch.channels_last)


def scans_at_once(usual: int, size: int) -> int:
    """How many scans of ``size`` pixels a side are looked at together: ``usual``, or of large ones fewer, to fit."""
    return usual if size <= LARGEST_USUAL else max(1, usual * LARGEST_USUAL**2 // size**2)
