"""The last word of the root set: trust weights go down its loss, for lies that no feature shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.core.messages import Root
from fedplatform.core.vectors import combine, products_with


@dataclass(frozen=True)
class Descent:
    """Exponentiated gradient (Kivinen and Warmuth, 1997) on the weights of a round, against the root loss of its step.

    The weights are n numbers and not d, so even a hundred root scans can hardly be overfitted; ``rate`` is how far they
    go in all ``steps`` together, in units of the largest gain, and nobody comes out with more than ``most`` equal
    shares. A weight of zero stays zero: whom trust refused, the root set does not let in again.
    """

    steps: int = 3
    rate: float = 5.0
    most: float = 2.0

    def __call__(self, weights: np.ndarray, factors: np.ndarray, deltas: np.ndarray, root: Root) -> np.ndarray:
        """New weights (n,) from those of trust; ``factors`` (n,) are what the updates (n, d) are clipped by."""
        counted = int(np.count_nonzero(weights))
        if counted < 2:
            return weights
        for _ in range(self.steps):
            slope = root.gradient(combine(weights * factors, deltas))
            gains = -factors * products_with(deltas, slope)
            largest = float(np.abs(gains[weights > 0]).max())
            if not largest > 0:
                break
            weights = weights * np.exp(
                self.rate / self.steps * (gains - gains @ weights).clip(-largest, largest) / largest
            )
            weights = at_most(self.most / counted, weights / weights.sum())
        return weights


def at_most(share: float, weights: np.ndarray) -> np.ndarray:
    """Weights (n,) summing to 1, none above ``share``; what is cut off goes to the others in proportion."""
    full = np.zeros(len(weights), dtype=bool)
    while True:
        above = (weights > share + 1e-12) & ~full
        if not above.any():
            return weights
        full |= above
        rest = np.where(full, 0.0, weights)
        left = 1 - share * full.sum()
        if not rest.sum() > 0 or left <= 0:
            return np.where(full, 1 / full.sum(), 0.0)
        weights = np.where(full, share, rest / rest.sum() * left)  # in this order, for rest * left may underflow
