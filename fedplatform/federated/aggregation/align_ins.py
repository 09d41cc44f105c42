"""AlignIns: whose update turns the model elsewhere, or disagrees with most signs where it is large."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.vectors import blocks_of, combine, cosines_to, shrinkage
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_updates
from fedplatform.federated.aggregation.median_scores import median_scores


@dataclass(frozen=True)
class AlignIns(Aggregator):
    """AlignIns (Xu et al., CVPR 2025): the mean of the updates whose direction is usual in two ways, clipped.

    The first is the cosine of an update to the broadcast model, ``Evidence.weights``. The second is how often it agrees
    with the majority's sign among its own largest ``share`` of entries. Whoever lies within ``cosine_limit`` and
    ``sign_limit`` median-based z-scores in both is clipped to the median norm of those, and counts; hostile is
    everybody else. Where that is everybody, the step and the weights are zero. Raises ValueError for n = 0, without
    the broadcast weights, and when it is made, unless 0 < share <= 1 and the limits are positive.

    >>> from dataclasses import replace
    >>> from fedplatform.federated.aggregation import default_evidence
    >>> updates = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [-9.0, 2.0]], np.float32)
    >>> told = replace(default_evidence(updates), weights=np.array([1.0, 0.0], np.float32))
    >>> AlignIns()(updates, told).hostile.tolist()
    [False, False, False, False, True]
    """

    share: float = 0.3
    cosine_limit: float = 1.0
    sign_limit: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"AlignIns needs 0 < share <= 1, got share={self.share}")
        if not (self.cosine_limit > 0 and self.sign_limit > 0):
            raise ValueError(f"AlignIns needs limits > 0, got {self.cosine_limit} and {self.sign_limit}")

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n, d = deltas.shape
        require_updates(self, n)
        if evidence.weights is None:
            raise ValueError("AlignIns needs evidence.weights, the model that was broadcast, got None")
        cosines, norms = cosines_to(deltas, evidence.weights)
        majority = majority_signs(deltas)
        largest = max(int(self.share * d), 1)
        agreement = np.array([_agreement(row, majority, largest) for row in deltas])
        usual: np.ndarray = median_scores(cosines) <= self.cosine_limit
        usual &= median_scores(agreement) <= self.sign_limit
        weights = usual / max(np.count_nonzero(usual), 1)
        limit = float(np.median(norms[usual])) if usual.any() else 0.0
        return Aggregate(combine(weights * shrinkage(norms, limit), deltas), weights, ~usual)


def majority_signs(deltas: np.ndarray) -> np.ndarray:
    """The sign that most updates have in each coordinate, 0 where they are even: (n, d) to (d,) int8."""
    signs = np.empty(deltas.shape[1], np.int8)
    for columns in blocks_of(deltas):
        signs[columns] = np.sign(np.sign(deltas[:, columns]).sum(axis=0))
    return signs


def _agreement(row: np.ndarray, majority: np.ndarray, largest: int) -> float:
    """The share of one update's largest entries that have the majority's sign."""
    places = np.argpartition(np.abs(row), len(row) - largest)[len(row) - largest :]
    return float(np.mean(np.sign(row[places]) == majority[places]))
