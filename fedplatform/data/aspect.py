"""Pixels that are higher than wide, or wider than high, as square ones."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fedplatform.data.brightness import Pixels

SAME = 0.01  # a ratio this near to 1 is a rounding of it
MOST = 8.0  # a ratio beyond is a slip of the pen, and no scanner
LONGEST_SIDE = 2048  # pixels of the result; networks see far fewer


def square_pixels(pixels: Pixels, *, aspect: float) -> Pixels:
    """Pixels (h, w) or (h, w, 3) that are ``aspect`` times as high as wide, as square ones in the middle of a square.

    The rest of the square is black: later every picture is made square by stretching its sides, and this one would be
    distorted again. Where the pixels are square already, and where the ratio cannot be true, they stay as they are.
    """
    if not 1 / MOST <= aspect <= MOST or abs(aspect - 1) <= SAME:
        return pixels
    height, width = pixels.shape[0] * max(aspect, 1.0), pixels.shape[1] * max(1 / aspect, 1.0)
    shrink = min(1.0, LONGEST_SIDE / max(height, width))
    inner = max(1, round(width * shrink)), max(1, round(height * shrink))
    image = Image.fromarray(pixels)
    side = max(inner)
    square = Image.new(image.mode, (side, side))
    square.paste(image.resize(inner, Image.Resampling.BILINEAR), ((side - inner[0]) // 2, (side - inner[1]) // 2))
    return np.asarray(square)
