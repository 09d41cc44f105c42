"""The geometric median: the point whose distances to all updates sum to the least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.vectors import combine, distances_from, gram_matrix
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_updates

TOLERANCE = 1e-9
CLOSEST = 1e-8
MAX_STEPS = 2000


def geometric_median_weights(gram: np.ndarray) -> np.ndarray:
    """Weights (n,), summing to 1, of the vectors in their geometric median, from their Gram matrix (n, n).

    Weiszfeld's iteration never leaves the span of the vectors, so a step costs n^2 and no pass over d. Origin is the
    medoid, and the unknown of a vector is its weight times its distance from there: both stay on the scale of the
    honest majority however far an attacker goes, so the digits of the honest are not lost to him.
    """
    medoid = int(np.argmin(np.sqrt(distances_from(gram)).sum(axis=1)))
    inner = gram - gram[medoid] - gram[:, [medoid]] + gram[medoid, medoid]
    lengths = np.sqrt(np.diag(inner).clip(min=0.0))
    scale = np.outer(lengths, lengths)
    cosines = np.divide(inner, scale, out=np.zeros_like(inner), where=scale > 0)
    typical = float(np.median(lengths))
    # The floor (Pillutla et al.'s nu) keeps a step finite where the median is one of the vectors.
    floor = max(CLOSEST * typical, np.finfo(np.float64).tiny ** 0.5)

    weights: np.ndarray = 1 / np.maximum(lengths, max(typical, floor))
    weights /= weights.sum()
    for _ in range(MAX_STEPS):
        arms = weights * lengths
        along = cosines @ arms
        distances = np.sqrt(np.maximum(lengths**2 - 2 * lengths * along + arms @ along, floor**2))
        update = 1 / distances
        update /= update.sum()
        move = (update - weights) * lengths
        weights = update
        if move @ cosines @ move <= (TOLERANCE * typical) ** 2:
            break
    return weights


@dataclass(frozen=True)
class GeometricMedian(Aggregator):
    """Geometric median by Weiszfeld's iteration, as in RFA (Pillutla et al., IEEE TSP 2022), run until it stands.

    delta = argmin_x sum ||g_i - x||. Survives any minority of attackers. A hospital's weight is its weight in the
    median, the smaller the further it lies. Raises ValueError for n = 0.

    >>> GeometricMedian()([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [30.0, 40.0]]).delta.round(3)
    array([0., 0.], dtype=float32)
    """

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n = len(deltas)
        require_updates(self, n)
        weights = geometric_median_weights(gram_matrix(deltas))
        return Aggregate(combine(weights, deltas), weights, np.zeros(n, dtype=bool))
