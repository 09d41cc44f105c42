"""OptiGradTrust: whom the server believes, from what an update looks like and from what its sender did before."""

from __future__ import annotations

from fedplatform.trust.dual_attention import DualAttention
from fedplatform.trust.hybrid import Hybrid
from fedplatform.trust.optigradtrust import OptiGradTrust
from fedplatform.trust.policy import TrustPolicy
from fedplatform.trust.robust import RobustScores
from fedplatform.trust.scorer import TrustScorer

SCORERS: dict[str, type[TrustScorer]] = {
    "robust": RobustScores,
    "network": DualAttention,
    "policy": TrustPolicy,
    "hybrid": Hybrid,
}

__all__ = ["SCORERS", "DualAttention", "Hybrid", "OptiGradTrust", "RobustScores", "TrustPolicy", "TrustScorer"]
