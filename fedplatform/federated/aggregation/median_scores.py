"""How far each value lies from the median, in standard deviations: what several rules filter by."""

from __future__ import annotations

import numpy as np

ROUNDING = 1e-12  # of the largest value: a spread below it is none


def median_scores(values: np.ndarray) -> np.ndarray:
    """The median-based z-score (n,) of each of n values, |x - median| / sd; 0 where all values are the same.

    >>> median_scores(np.array([1.0, 1.0, 1.0, 5.0])).round(3).tolist()
    [0.0, 0.0, 0.0, 2.309]
    """
    away = np.abs(values - np.median(values))
    if away.max() <= ROUNDING * np.abs(values).max():
        return np.zeros(len(values))
    scores: np.ndarray = away / values.std()
    return scores
