"""Bulyan: select by Krum, then decide every coordinate among the selected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.core.coordinates import evenly_spaced
from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.vectors import distances_from, gram_matrix
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_hospitals
from fedplatform.federated.aggregation.krum import krum_scores
from fedplatform.federated.aggregation.order_statistics import mean_around_median, rank_shares


def select_by_krum(distances: np.ndarray, *, f: int) -> np.ndarray:
    """The n - 2f updates that repeated Krum picks from squared distances (n, n), in ascending order of hospital.

    Each pick leaves the pool, so the pool ends below Krum's own 2f + 3. There a score keeps the f + 1 neighbours it has
    at 2f + 3, because over fewer, f attackers who send the same update would vouch for each other and win.
    """
    n = len(distances)
    pool = np.arange(n)
    chosen: list[int] = []
    while len(chosen) < n - 2 * f:
        scores = krum_scores(distances[np.ix_(pool, pool)], max(len(pool) - f - 2, f + 1))
        best = int(np.argmin(scores))
        chosen.append(int(pool[best]))
        pool = np.delete(pool, best)
    return np.sort(chosen)


@dataclass(frozen=True)
class Bulyan(Aggregator):
    """Bulyan over Krum (El Mhamdi et al., ICML 2018): coordinate-wise, among those whom Krum selects.

    Repeated Krum selects n - 2f updates; in every coordinate the n - 4f of their values that lie nearest to their
    median are averaged. Hostile are the 2f updates that were not selected; a hospital's weight is the share of the
    values that were averaged. Raises ValueError unless n >= 4f + 3.

    >>> Bulyan(f=1)([[1.0], [2.0], [3.0], [2.0], [2.0], [1.0], [50.0]]).delta
    array([2.], dtype=float32)
    """

    f: int

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n, f = len(deltas), self.f
        require_hospitals(self, n=n, f=f, at_least=4 * f + 3, formula="n >= 4f + 3")
        selected = select_by_krum(distances_from(gram_matrix(deltas)), f=f)
        sample = evenly_spaced(deltas)[selected]
        weights, hostile = np.zeros(n), np.ones(n, dtype=bool)
        with np.errstate(over="ignore"):  # a value infinitely far is far enough to be left out
            distances = np.abs(sample - _median(sample))
        weights[selected] = rank_shares(distances, 0, n - 4 * f)
        hostile[selected] = False
        return Aggregate(mean_around_median(deltas, chosen=selected, count=n - 4 * f), weights, hostile)


def _median(values: np.ndarray) -> np.ndarray:
    """The median of every column, (n, s) to (s,) float32."""
    ordered = np.sort(values, axis=0)
    lower, upper = ordered[(len(values) - 1) // 2], ordered[len(values) // 2]
    median: np.ndarray = upper - (upper - lower) * np.float32(0.5)
    return median
