"""Aggregation: what the server makes of the updates of a round, among which some may lie."""

from fedplatform.federated.aggregation.aggregator import (
    Aggregator,
    aggregate_usable,
    as_rule,
    as_updates,
    default_evidence,
    try_rule,
)
from fedplatform.federated.aggregation.align_ins import AlignIns
from fedplatform.federated.aggregation.batch_statistics import combine_statistics
from fedplatform.federated.aggregation.bulyan import Bulyan
from fedplatform.federated.aggregation.centered_clipping import CenteredClipping
from fedplatform.federated.aggregation.coordinatewise import Median, TrimmedMean
from fedplatform.federated.aggregation.deep_sight import DeepSight
from fedplatform.federated.aggregation.dnc import DnC
from fedplatform.federated.aggregation.fl_detector import FLDetector
from fedplatform.federated.aggregation.flame import FLAME
from fedplatform.federated.aggregation.fltrust import FLTrust
from fedplatform.federated.aggregation.fools_gold import FoolsGold
from fedplatform.federated.aggregation.geometric_median import GeometricMedian
from fedplatform.federated.aggregation.krum import Krum, MultiKrum
from fedplatform.federated.aggregation.lasa import LASA
from fedplatform.federated.aggregation.mean import Mean, WeightedMean
from fedplatform.federated.aggregation.mixing import Bucketing, Mixed, Mixer, NearestNeighbourMixing, NormClipping
from fedplatform.federated.aggregation.signguard import SignGuard

RULES: dict[str, type[Aggregator]] = {
    "mean": Mean,
    "weighted_mean": WeightedMean,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "bulyan": Bulyan,
    "geometric_median": GeometricMedian,
    "rfa": GeometricMedian,  # its other name
    "centered_clipping": CenteredClipping,
    "fltrust": FLTrust,
    "dnc": DnC,
    "signguard": SignGuard,
    "flame": FLAME,
    "foolsgold": FoolsGold,
    "fldetector": FLDetector,
    "deepsight": DeepSight,
    "lasa": LASA,
    "alignins": AlignIns,
}

MIXERS: dict[str, type[Mixer]] = {
    "nnm": NearestNeighbourMixing,
    "bucketing": Bucketing,
    "norm_clip": NormClipping,
}

__all__ = [
    "FLAME",
    "LASA",
    "MIXERS",
    "RULES",
    "Aggregator",
    "AlignIns",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "DeepSight",
    "DnC",
    "FLDetector",
    "FLTrust",
    "FoolsGold",
    "GeometricMedian",
    "Krum",
    "Mean",
    "Median",
    "Mixed",
    "Mixer",
    "MultiKrum",
    "NearestNeighbourMixing",
    "NormClipping",
    "SignGuard",
    "TrimmedMean",
    "WeightedMean",
    "aggregate_usable",
    "as_rule",
    "as_updates",
    "combine_statistics",
    "default_evidence",
    "try_rule",
]
