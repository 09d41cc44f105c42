"""What a share measured on few scans is worth, and on scans that come in groups."""

from __future__ import annotations

import math

import numpy as np

NORMAL_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution
ENUMERATED = 12  # groups whose signs are all tried out; of more, some are drawn
DRAWS = 9_999


def wilson(share: float, n: float) -> tuple[float, float]:
    """The 95 % score interval of a share of n (Wilson, JASA 1927): (low, high) within [0, 1]; n is at least 1.

    Unlike share ± 1.96 sd it stays honest near 0 and 1, where an attacked classifier and a clean one live.
    """
    square = NORMAL_95**2 / n
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def effective_size(right: np.ndarray, groups: np.ndarray) -> float:
    """How many independent scans would tell as much as these (Kish's design effect), between 1 and their number.

    ``right`` (n,) bool, ``groups`` (n,) say which scans belong together: the slices of one patient are answered rightly
    or wrongly together, so thirty of them are hardly worth more than one. The variance of the share is measured between
    groups, as survey statistics do (Kish, Survey Sampling, 1965).
    """
    n = len(right)
    numbers = np.unique(groups, return_inverse=True)[1]
    count = int(numbers.max()) + 1
    share = right.mean()
    residual = np.bincount(numbers, weights=right - share)
    if count == 1 or not (residual**2).sum():
        return float(count)  # all of them right, all of them wrong, or in step: what is left to count are the groups
    variance = count / (count - 1) * (residual**2).sum() / n**2
    return float(np.clip(share * (1 - share) / variance, 1, n))


def sign_flips(gains: np.ndarray) -> float:
    """The p of the two-sided sign-flip test that gains (m,) are as likely as losses, each group being a unit.

    Where every group is one scan this is McNemar's exact test. All signs are tried out; of more than 12 groups, 9,999
    draws of them, the same every time (Fisher, The Design of Experiments, 1935).
    """
    moved = gains[gains != 0].astype(np.float64)
    if not len(moved):
        return 1.0
    seen = abs(moved.sum())
    if len(moved) <= ENUMERATED:
        signs = 2 * ((np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1) - 1
        return float((abs(signs @ moved) >= seen - 1e-9).mean())
    signs = np.random.default_rng(0).choice([-1, 1], size=(DRAWS, len(moved)))
    return float(((abs(signs @ moved) >= seen - 1e-9).sum() + 1) / (DRAWS + 1))
