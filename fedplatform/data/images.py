"""Stored pixels as the images that networks take."""

from __future__ import annotations

import numpy as np
import torch


def to_images(pixels: np.ndarray) -> torch.Tensor:
    """Map uint8 (n, c, h, w) to float32 images in [0, 1], laid out as the convolutions like it."""
    return torch.from_numpy(pixels.astype(np.float32) / 255).contiguous(memory_format=torch.channels_last)
