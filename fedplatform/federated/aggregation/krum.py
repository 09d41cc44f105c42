"""Krum and Multi-Krum: believe the updates that have the nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.vectors import combine, distances_from, gram_matrix
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_hospitals


def krum_scores(distances: np.ndarray, num_neighbours: int) -> np.ndarray:
    """Sum of the squared distances (n, n) of each update to its nearest neighbours, itself left out: (n,)."""
    scores: np.ndarray = np.sort(distances, axis=1)[:, 1 : 1 + num_neighbours].sum(axis=1)
    return scores


@dataclass(frozen=True)
class Krum(Aggregator):
    """The one update whose n - f - 2 nearest neighbours are nearest (Blanchard et al., NeurIPS 2017).

    score_i = sum of ||g_i - g_j||^2 over its n - f - 2 nearest g_j; the lowest wins, among equal scores the earlier
    hospital. Hostile are the f updates of the worst score, so with f > 0 somebody always is. Raises ValueError unless
    n >= 2f + 3.

    >>> aggregate = Krum(f=1)([[9.0], [10.0], [11.0], [0.0], [100.0]])
    >>> aggregate.delta, aggregate.hostile.tolist()
    (array([10.], dtype=float32), [False, False, False, False, True])
    """

    f: int

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n, f = len(deltas), self.f
        require_hospitals(self, n=n, f=f, at_least=2 * f + 3, formula="n >= 2f + 3")
        return _mean_of_best(deltas, f=f, m=1)


@dataclass(frozen=True)
class MultiKrum(Aggregator):
    """Mean of the m updates of the best Krum score (Blanchard et al., NeurIPS 2017); ``m=None`` takes n - f of them.

    Hostile are the f updates of the worst score. Raises ValueError unless n >= 2f + 3 and 1 <= m <= n - f.

    >>> MultiKrum(f=1, m=3)([[9.0], [10.0], [11.0], [0.0], [100.0]]).delta
    array([10.], dtype=float32)
    """

    f: int
    m: int | None = None

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n, f = len(deltas), self.f
        require_hospitals(self, n=n, f=f, at_least=2 * f + 3, formula="n >= 2f + 3")
        m = n - f if self.m is None else self.m
        if not 1 <= m <= n - f:
            raise ValueError(f"MultiKrum needs 1 <= m <= n - f, got n={n}, f={f}, m={m}")
        return _mean_of_best(deltas, f=f, m=m)


def _mean_of_best(deltas: np.ndarray, *, f: int, m: int) -> Aggregate:
    n = len(deltas)
    ranking = np.argsort(krum_scores(distances_from(gram_matrix(deltas)), n - f - 2), kind="stable")
    weights, hostile = np.zeros(n), np.zeros(n, dtype=bool)
    weights[ranking[:m]] = 1 / m
    hostile[ranking[n - f :]] = True
    return Aggregate(combine(weights, deltas), weights, hostile)
