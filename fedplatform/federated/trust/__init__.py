"""OptiGradTrust: whom the server believes, from what an update looks like and from what its sender did before."""

from __future__ import annotations

from fedplatform.federated.trust.dual_attention import DualAttention
from fedplatform.federated.trust.hybrid import Hybrid
from fedplatform.federated.trust.optigradtrust import OptiGradTrust
from fedplatform.federated.trust.policy import TrustPolicy
from fedplatform.federated.trust.robust import RobustScores
from fedplatform.federated.trust.scorer import TrustScorer

SCORERS: dict[str, type[TrustScorer]] = {
    "robust": RobustScores,
    "network": DualAttention,
    "policy": TrustPolicy,
    "hybrid": Hybrid,
}

__all__ = ["SCORERS", "DualAttention", "Hybrid", "OptiGradTrust", "RobustScores", "TrustPolicy", "TrustScorer"]
