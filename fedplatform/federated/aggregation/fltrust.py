"""FLTrust: believe a hospital as far as it agrees with the server's own small clean data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.vectors import combine, cosines_to
from fedplatform.federated.aggregation.feasibility import require_updates


@dataclass(frozen=True)
class FLTrust:
    """FLTrust (Cao et al., NDSS 2021): the mean of updates of one norm, weighted by trust.

    Trust is the positive part of the cosine to the root update, whose norm all updates are brought to. Hostile is whom
    it does not trust at all; where that is everybody, the step and the weights are zero. Weights are shares of trust.
    Survives any number of attackers, if the root data look like the hospitals'. Raises ValueError without a root
    update.
    """

    needs_root: ClassVar[bool] = True

    def __call__(self, deltas: torch.Tensor, evidence: Evidence) -> Aggregate:
        require_updates(self, len(deltas))
        if evidence.root_delta is None:
            raise ValueError("FLTrust needs evidence.root_delta, the server's update on its own clean data, got None")
        cosines, norms = cosines_to(deltas, evidence.root_delta)
        trust = cosines.clip(min=0.0)
        weights = trust / trust.sum() if trust.any() else trust
        root_norm = float(torch.linalg.vector_norm(evidence.root_delta, dtype=torch.float64))
        factors = np.divide(root_norm * weights, norms, out=np.zeros_like(norms), where=norms > 0)
        return Aggregate(combine(factors, deltas), torch.from_numpy(weights), torch.from_numpy(trust == 0))
