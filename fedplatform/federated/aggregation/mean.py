"""The two means: what every hospital federation runs today, and what one attacker can move anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.vectors import combine
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_updates


@dataclass(frozen=True)
class Mean(Aggregator):
    """The plain mean of updates (n, d): every hospital counts the same. Breaks under one attacker.

    delta = (g_1 + ... + g_n) / n. Raises ValueError for n = 0.

    >>> Mean()([[0.0, 2.0], [4.0, 6.0]]).delta
    array([2., 4.], dtype=float32)
    """

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n = len(deltas)
        require_updates(self, n)
        weights = np.full(n, 1 / n)
        return Aggregate(combine(weights, deltas), weights, np.zeros(n, dtype=bool))


@dataclass(frozen=True)
class WeightedMean(Aggregator):
    """FedAvg (McMahan et al., AISTATS 2017): hospitals count by the examples they claim. Breaks under one attacker.

    delta = sum w_i g_i with w_i = min(c_i, cap * median(c)) / sum. Nobody can check a claim c_i, so a count enters as
    at most ``cap`` times the round's median count; ``cap=math.inf`` is FedAvg as published. The claims are
    ``Evidence.num_examples`` (n,). Raises ValueError where a claim is negative or the median claim is not positive.

    >>> from dataclasses import replace
    >>> from fedplatform.federated.aggregation import default_evidence
    >>> updates = np.array([[0.0], [4.0], [8.0]], np.float32)
    >>> told = replace(default_evidence(updates), num_examples=np.array([10, 10, 1000]))
    >>> WeightedMean(cap=2.0)(updates, told).weights
    array([0.25, 0.25, 0.5 ])
    """

    cap: float = 3.0

    def __post_init__(self) -> None:
        if not self.cap > 0:
            raise ValueError(f"WeightedMean needs cap > 0, got cap={self.cap}")

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n = len(deltas)
        require_updates(self, n)
        claims = evidence.num_examples.astype(np.float64)
        median = float(np.median(claims))
        if claims.min() < 0 or median <= 0:
            raise ValueError(
                f"WeightedMean needs counts >= 0 with a positive median, got {claims.astype(int).tolist()}"
            )
        counts = np.minimum(claims, self.cap * median)
        weights = counts / counts.sum()
        return Aggregate(combine(weights, deltas), weights, np.zeros(n, dtype=bool))
