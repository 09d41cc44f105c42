"""The file of updates that all systems read."""

from __future__ import annotations

import numpy as np


def opened(file: str) -> np.ndarray:
    """Updates (n, d) float32 as one process after another maps them into its memory; what one writes stays its own."""
    rows: np.ndarray = np.load(file, mmap_mode="c").view(np.ndarray)
    return rows
