"""The interval of a share that was measured on few scans."""

from __future__ import annotations

import math

NORMAL_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share of n (Wilson, JASA 1927): (low, high) within [0, 1]; n is at least 1.

    Unlike share ± 1.96 sd it stays honest near 0 and 1, where an attacked classifier and a clean one live.
    """
    square = NORMAL_95**2 / n
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)
