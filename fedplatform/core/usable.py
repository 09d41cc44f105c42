"""Which numbers of an update a rule can compute with: finite ones, of a length whose square float32 still holds."""

from __future__ import annotations

import math

import numpy as np

# Half the root of the largest float32, 9.2e18. Two updates of this length lie at most twice as far apart, so their
# squared distance is a float32, and so is every square, product of two norms and inner product: all that rules, server
# optimisers and reports compute from updates, where they do it in float32, too. Training gives lengths of .001 to
# 1,000, so nothing that a network could learn is refused, and no attack on a mean needs as much. A longer update has
# one use: to break the arithmetic.
LONGEST = math.sqrt(float(np.finfo(np.float32).max)) / 2
CHECKED = 1 << 20  # numbers that are looked at together


def unusable(vector: np.ndarray) -> str:
    """What is wrong with the numbers of an update (d,) float32, in words; empty where a rule can compute with them.

    >>> unusable(np.array([1.0, -2.0], np.float32))
    ''
    >>> unusable(np.array([1.0, np.nan], np.float32))
    'an update is finite, got 1 NaN or infinite entries of 2'
    >>> unusable(np.array([3e38, -3e38], np.float32))
    'an update has a norm of at most 9.22e+18, got 4.24e+38'
    """
    parts = [vector[start : start + CHECKED] for start in range(0, vector.size, CHECKED)]
    largest = max((float(np.abs((part.min(), part.max())).max()) for part in parts), key=_nan_first, default=0.0)
    if not math.isfinite(largest):
        broken = vector.size - sum(np.count_nonzero(np.isfinite(part)) for part in parts)
        return f"an update is finite, got {broken} NaN or infinite entries of {vector.size}"
    if largest * math.sqrt(vector.size) <= LONGEST:  # then the norm is no larger, and need not be known
        return ""
    norm = math.sqrt(sum(float(np.square(part, dtype=np.float64).sum()) for part in parts))
    return f"an update has a norm of at most {LONGEST:.3g}, got {norm:.3g}" if norm > LONGEST else ""


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value
