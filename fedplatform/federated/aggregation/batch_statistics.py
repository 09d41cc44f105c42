"""How the batch-normalisation part of the updates is combined, which no rule ever judges by."""

from __future__ import annotations

import numpy as np

from fedplatform.core.messages import Aggregate
from fedplatform.core.vectors import combine
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.mean import Mean, WeightedMean
from fedplatform.federated.aggregation.order_statistics import mean_of_ranks, median_ranks


def combine_statistics(rule: Aggregator, statistics: np.ndarray, *, aggregate: Aggregate) -> np.ndarray:
    """Combine batch-normalisation updates (n, s) to (s,) beside what ``rule`` made of the weights.

    Means and variances live on their own scale, so they enter no distance, cosine or norm, and being found honest
    elsewhere says nothing of them: a plain mean applies its own weights, every other rule the coordinate-wise median.
    A rule that trusts nobody moves them no more than the weights.
    """
    if not aggregate.weights.any():
        return np.zeros(statistics.shape[1], dtype=np.float32)
    if isinstance(rule, Mean | WeightedMean):
        return combine(aggregate.weights, statistics)
    return mean_of_ranks(statistics, *median_ranks(len(statistics)))
