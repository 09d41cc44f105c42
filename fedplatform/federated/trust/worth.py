"""What a coalition of hospitals is worth to the server: how much its step lowers the loss on the root set."""

from __future__ import annotations

import numpy as np

from fedplatform.core.messages import Root
from fedplatform.core.vectors import mix, shrinkage
from fedplatform.federated.trust.shapley import Worth

AT_ONCE = 16  # steps in memory together


def worth_of(deltas: np.ndarray, norms: np.ndarray, root: Root) -> Worth:
    """The worth of coalitions of the hospitals that sent ``deltas`` (n, d): minus the root loss after their step.

    The step is the mean of the members' updates, each cut to the median norm of the round, as the server would take
    it: unclipped, one update a thousand times too long would decide over every coalition it is in.
    """
    factors = shrinkage(norms, float(np.median(norms)))

    def worth(coalitions: np.ndarray) -> np.ndarray:
        shares = coalitions * factors / np.maximum(coalitions.sum(axis=1, keepdims=True), 1)
        parts = np.array_split(shares, -(-len(shares) // AT_ONCE))
        return -np.concatenate([root.losses(mix(part, deltas)) for part in parts])

    return worth
