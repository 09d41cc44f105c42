"""FLTrust: believe a hospital as far as it agrees with the server's own small clean data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.vectors import combine, cosines_to, norm_of
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_updates


@dataclass(frozen=True)
class FLTrust(Aggregator):
    """FLTrust (Cao et al., NDSS 2021): the mean of updates of one norm, weighted by trust.

    delta = sum t_i ||r|| g_i / ||g_i|| / sum t_i with t_i = max(0, cos(g_i, r)), r = ``Evidence.root_delta`` (d,).
    Hostile is whom it does not trust at all; where that is everybody, the step and the weights are zero. Weights are
    shares of trust. Survives any number of attackers, if the root data look like the hospitals'. Raises ValueError
    without a root update.

    >>> from dataclasses import replace
    >>> from fedplatform.federated.aggregation import default_evidence
    >>> updates = np.array([[2.0, 0.0], [0.0, 5.0], [-3.0, 0.0]], np.float32)
    >>> told = replace(default_evidence(updates), root_delta=np.array([1.0, 0.0], np.float32))
    >>> aggregate = FLTrust()(updates, told)
    >>> aggregate.delta, aggregate.hostile.tolist()
    (array([1., 0.], dtype=float32), [False, True, True])
    """

    needs_root: ClassVar[bool] = True

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        require_updates(self, len(deltas))
        if evidence.root_delta is None:
            raise ValueError("FLTrust needs evidence.root_delta, the server's update on its own clean data, got None")
        cosines, norms = cosines_to(deltas, evidence.root_delta)
        trust = cosines.clip(min=0.0)
        weights = trust / trust.sum() if trust.any() else trust
        factors = np.divide(norm_of(evidence.root_delta) * weights, norms, out=np.zeros_like(norms), where=norms > 0)
        return Aggregate(combine(factors, deltas), weights, trust == 0)
