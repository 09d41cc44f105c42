"""Centered clipping: nobody moves the aggregate further than a radius from where it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.vectors import column_blocks, combine, shrinkage, squared_distances_to
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_updates


@dataclass(frozen=True)
class CenteredClipping(Aggregator):
    """Centered clipping (Karimireddy et al., ICML 2021), from the previous aggregate and never from the mean.

    v <- v + sum (g_i - v) min(1, radius / ||g_i - v||) / n, from v = ``Evidence.previous_delta`` (d,), ``steps`` times.
    The mean would be a starting point of the attackers' choice. ``radius`` is in units of the updates' L2 norm;
    ``None`` takes, in each of the ``steps``, the median of the distances to the point reached so far (first: to the
    previous aggregate), which a minority cannot move beyond the honest. Weights are the clipping factors, rescaled to
    sum to 1. Raises ValueError for n = 0, and when it is made, for radius <= 0 or steps < 1.

    >>> CenteredClipping(radius=1.0)([[1.0], [1.0], [-100.0]]).delta.round(3)
    array([0.333], dtype=float32)
    """

    radius: float | None = None
    steps: int = 1

    def __post_init__(self) -> None:
        if self.radius is not None and not self.radius > 0:
            raise ValueError(f"CenteredClipping needs radius > 0, got radius={self.radius}")
        if self.steps < 1:
            raise ValueError(f"CenteredClipping needs steps >= 1, got steps={self.steps}")

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n = len(deltas)
        require_updates(self, n)
        point, weights = evidence.previous_delta, np.zeros(n)
        for _ in range(self.steps):
            distances = np.sqrt(squared_distances_to(deltas, point))
            pulls = shrinkage(distances, float(np.median(distances)) if self.radius is None else self.radius) / n
            left = 1 - float(pulls.sum())
            moved = combine(pulls, deltas)
            for columns in column_blocks(len(moved)):  # a block at a time: the sum of two long vectors is a third one
                moved[columns] += left * point[columns]
            point = moved
            weights = left * weights + pulls
        return Aggregate(point, weights / weights.sum(), np.zeros(n, dtype=bool))
