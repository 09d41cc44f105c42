"""The rules that decide every coordinate by itself (Yin et al., ICML 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.core.coordinates import evenly_spaced
from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_hospitals, require_updates
from fedplatform.federated.aggregation.order_statistics import mean_of_ranks, median_ranks, rank_shares


@dataclass(frozen=True)
class Median(Aggregator):
    """Coordinate-wise median (Yin et al., ICML 2018); for even n the mean of the two middle values.

    A hospital's weight is the share of coordinates in which its value was a middle one. Raises ValueError for n = 0.

    >>> Median()([[0.0, 5.0], [1.0, 7.0], [9.0, 6.0]]).delta
    array([1., 6.], dtype=float32)
    """

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        require_updates(self, len(deltas))
        return _between(deltas, *median_ranks(len(deltas)))


@dataclass(frozen=True)
class TrimmedMean(Aggregator):
    """Coordinate-wise trimmed mean (Yin et al., ICML 2018): the f largest and f smallest values are left out.

    In every coordinate delta = (g_(f+1) + ... + g_(n-f)) / (n - 2f), values in ascending order. A hospital's weight is
    the share of the values that were left in. Raises ValueError unless n > 2f.

    >>> TrimmedMean(f=1)([[0.0], [1.0], [2.0], [9.0]]).delta
    array([1.5], dtype=float32)
    """

    f: int

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n, f = len(deltas), self.f
        require_hospitals(self, n=n, f=f, at_least=2 * f + 1, formula="n > 2f")
        return _between(deltas, f, n - f)


def _between(deltas: np.ndarray, first: int, stop: int) -> Aggregate:
    return Aggregate(
        delta=mean_of_ranks(deltas, first, stop),
        weights=rank_shares(evenly_spaced(deltas), first, stop),
        hostile=np.zeros(len(deltas), dtype=bool),
    )
