"""SignGuard: an update that points elsewhere has other shares of plus, minus and zero."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.core.coordinates import random_places, row_blocks
from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.vectors import combine, cosines_from, gram_matrix, shrinkage
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_updates

NARROWEST = 1e-3  # of a share or a cosine: updates this much alike are one cluster


def largest_cluster(features: np.ndarray) -> np.ndarray:
    """Members (n,) bool of the largest mean-shift cluster of (n, k) features; among equals, of the denser one."""
    from sklearn.cluster import MeanShift, estimate_bandwidth  # as slow to import as torch, and only this needs it

    width = max(float(estimate_bandwidth(features, quantile=0.5)), NARROWEST)
    labels = MeanShift(bandwidth=width).fit(features).labels_
    members: np.ndarray = labels == np.bincount(labels).argmax()
    return members


@dataclass(frozen=True)
class SignGuard(Aggregator):
    """SignGuard with similarity (Xu et al., ICDCS 2022): mean of the updates that pass two filters.

    First filter: the norm lies between ``smallest`` and ``largest`` times the median norm. Second: the shares of
    positive, negative and zero signs on a random ``sign_share`` of the coordinates, with the median cosine to all
    updates, fall into the largest mean-shift cluster. What passes is clipped to the median norm. Hostile is who fails
    either filter; weights are shares of the mean. Draws from ``Evidence.generator``. Raises ValueError for n = 0.

    >>> SignGuard(sign_share=1.0)([[3.0, 4.0], [4.0, 3.0], [3.0, 4.0], [4.0, 3.0], [-300.0, -400.0]]).delta
    array([3.5, 3.5], dtype=float32)
    """

    smallest: float = 0.1
    largest: float = 3.0
    sign_share: float = 0.1

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n, d = deltas.shape
        require_updates(self, n)
        gram = gram_matrix(deltas)
        norms = np.sqrt(np.diag(gram))
        median = float(np.median(norms))
        usual = (self.smallest * median <= norms) & (norms <= self.largest * median)

        places = random_places(d, max(round(self.sign_share * d), 1), generator=evidence.generator)
        shares = np.concatenate([_sign_shares(deltas[rows], places) for rows in row_blocks(deltas)])
        alike = largest_cluster(np.column_stack([shares, np.median(cosines_from(gram), axis=1)]))

        passed = usual & alike
        weights = passed / max(np.count_nonzero(passed), 1)
        step = combine(weights * shrinkage(norms, median), deltas)
        return Aggregate(step, weights, ~passed)


def _sign_shares(deltas: np.ndarray, places: np.ndarray | None) -> np.ndarray:
    """Shares of positive, negative and zero signs on these coordinates, None for all: (n, d) to (n, 3) float64."""
    signs = np.sign(deltas if places is None else np.take(deltas, places, axis=1))
    return np.stack([(signs == sign).mean(axis=1) for sign in (1, -1, 0)], axis=1)
