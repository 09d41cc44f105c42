"""Colours that are stored as luma and chroma."""

from __future__ import annotations

import numpy as np

from fedplatform.data.brightness import Values

# ITU-R BT.601 over the full range: DICOM PS3.3, C.7.6.3.1.2, YBR_FULL.
TO_RGB = np.array([[1.0, 1.0, 1.0], [0.0, -0.344136, 1.772], [1.402, -0.714136, 0.0]], np.float32)
ROWS = 64  # at a time, to spare memory


def rgb_of(stored: Values) -> Values:
    """Luma and chroma (h, w, 3) of any unsigned type as RGB of the same type."""
    most = np.iinfo(stored.dtype).max
    middle = np.array([0, most // 2 + 1, most // 2 + 1], np.float32)
    colours = np.empty_like(stored)
    for row in range(0, len(stored), ROWS):
        shifted = stored[row : row + ROWS].astype(np.float32) - middle
        colours[row : row + ROWS] = np.clip(np.rint(shifted @ TO_RGB), 0, most)
    return colours
