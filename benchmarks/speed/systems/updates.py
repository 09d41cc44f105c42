"""The file of updates that all systems read."""

from __future__ import annotations

import numpy as np


def opened(file: str) -> np.ndarray:
    """Updates (n, d) float32, a copy in each process: of a map, pages that are read would count as the rule's."""
    rows: np.ndarray = np.load(file)
    return rows
