"""FoolsGold: hospitals that keep sending alike are one attacker under many names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.core.mapped import scratch
from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.vectors import combine, cosines_from, gram_matrix
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_updates

NOTHING = 1e-9  # of a similarity: below it, what is left of an update's own is rounding


@dataclass(frozen=True)
class FoolsGold(Aggregator):
    """FoolsGold (Fung et al., RAID 2020): the more a hospital's summed updates are like another's, the less it counts.

    The cosines are of updates summed over all rounds. A hospital that is less like the others than the one that it is
    most like is pardoned, its cosines being scaled down; what is left of 1 minus the largest goes through a logit,
    ``confidence`` times as steep. Hostile is whose weight is 0. Where all are alike to the last digit nobody stands
    out, and all count the same. The paper adds up weighted updates; here they are averaged. It is made against several
    attackers who send alike: one alone counts in full, and hospitals with the same scans are taken for one attacker.
    It remembers n summed updates. Raises ValueError for n = 0, and when it is made, for confidence <= 0.

    >>> aggregate = FoolsGold()([[1.0, 0.2, 0.0], [0.2, 1.0, 0.0], [-9.0, -9.0, 9.0], [-9.0, -9.0, 9.0]])
    >>> aggregate.hostile.tolist()
    [False, False, True, True]
    """

    confidence: float = 1.0

    def __post_init__(self) -> None:
        if not self.confidence > 0:
            raise ValueError(f"FoolsGold needs confidence > 0, got confidence={self.confidence}")

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n, d = deltas.shape
        require_updates(self, n)
        before = evidence.memory if isinstance(evidence.memory, dict) else {}
        sums = scratch(n, d)
        for row, name in enumerate(evidence.hospital_ids):
            sums[row] = deltas[row]
            if name in before:
                sums[row] += before[name]
        credits = self.credits(cosines_from(gram_matrix(sums)))
        weights = credits / credits.sum() if credits.any() else credits
        memory = before | dict(zip(evidence.hospital_ids, sums, strict=True))
        return Aggregate(combine(weights, deltas), weights, credits == 0, memory=memory)

    def credits(self, cosines: np.ndarray) -> np.ndarray:
        """How much each hospital counts, 0 to 1, from the cosines (n, n) of the summed updates: (n,)."""
        n = len(cosines)
        if n == 1:
            return np.ones(1)
        others = cosines.copy()
        np.fill_diagonal(others, -np.inf)
        likeness = others.max(axis=1)
        pardon = np.ones((n, n))
        lesser = (likeness[None, :] > likeness[:, None]) & (likeness[None, :] > 0)
        np.divide(likeness[:, None].clip(min=0.0), likeness[None, :], out=pardon, where=lesser)
        own = (1 - (others * pardon).max(axis=1)).clip(0.0, 1.0)
        if own.max() <= NOTHING:
            return np.ones(n)
        own /= own.max()
        with np.errstate(divide="ignore"):
            logit = self.confidence * (np.log(own) - np.log1p(-own)) + 0.5
        credits: np.ndarray = logit.clip(0.0, 1.0)
        return credits
