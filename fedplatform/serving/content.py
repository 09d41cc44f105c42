"""Whether a picture shows anything: what is blank, too small or pure noise is no scan, whatever it is sent for."""

from __future__ import annotations

import numpy as np

from fedplatform.data.brightness import Pixels
from fedplatform.serving.refused import Refused

SMALLEST_SIDE = 8  # pixels
NEAR = 2  # grey levels; a blank JPEG is blank up to these
FEWEST = 8  # pixels that differ from all others
JUDGED_SIDE = 32  # pixels; below, chance alone makes neighbours of noise alike
JUDGED = 1024  # pixels a side, from the middle
ALIKE = 0.25  # correlation of neighbours; of scans it is above .6 at some scale, of noise below .1 at all


def is_blank(pixels: Pixels) -> bool:
    """Whether a picture (h, w) or (h, w, 3) is of one colour, but for a few pixels."""
    flat = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1)
    common = np.median(flat[:: max(1, len(flat) // 2**16)], axis=0).round()
    low, high = np.clip(common - NEAR, 0, 255).astype(np.uint8), np.clip(common + NEAR, 0, 255).astype(np.uint8)
    return bool(((flat < low) | (flat > high)).any(axis=1).sum() < FEWEST)


def is_noise(pixels: Pixels) -> bool:
    """Whether neighbouring pixels have nothing in common, at no scale: a scan's have, however noisy it is."""
    height, width = pixels.shape[:2]
    top, left = max(0, (height - JUDGED) // 2), max(0, (width - JUDGED) // 2)
    part = pixels[top : top + JUDGED, left : left + JUDGED].astype(np.float32)
    grey = part if part.ndim == 2 else part.mean(axis=2)
    if min(grey.shape) < JUDGED_SIDE:
        return False
    while min(grey.shape) >= JUDGED_SIDE // 2:
        if _neighbours_alike(grey) > ALIKE:
            return False
        rows, columns = grey.shape[0] // 2 * 2, grey.shape[1] // 2 * 2
        even = grey[:rows, :columns]
        grey = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4
    return True


def check_size(pixels: Pixels) -> None:
    """Refuse a picture that is too small to show a scan."""
    if min(pixels.shape[:2]) < SMALLEST_SIDE:
        raise Refused(422, f"The picture is too small: a side must have {SMALLEST_SIDE} pixels at least.")


def _neighbours_alike(grey: np.ndarray) -> float:
    """The mean correlation of pixels beside and below each other."""
    centred = grey - grey.mean()
    power = float((centred**2).mean())
    if power == 0:
        return 0.0
    beside, below = (centred[:, 1:] * centred[:, :-1]).mean(), (centred[1:] * centred[:-1]).mean()
    return float(beside + below) / 2 / power
