"""Trustworthy federated learning for medical imaging.

    import fedplatform as fp

    result = fp.run(data="lesions", rule="trust", attack="min_max", rounds=3)
    result.rounds[["accuracy", "auc"]]

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.engine import RayEngine as Ray
    from fedplatform import attacks
    from fedplatform.api.defending import Defence, defend, evaluate
    from fedplatform.api.result import Page, Result
    from fedplatform.api.rules import aggregate
    from fedplatform.api.training import compare, run
    from fedplatform.core.errors import FedplatformError
    from fedplatform.core.messages import Aggregate, Evidence
    from fedplatform.core.settings import ExperimentError
    from fedplatform.data.error import DataError
    from fedplatform.data.memory import from_arrays
    from fedplatform.defence.defended_classifier import DefendedClassifier
    from fedplatform.defence.diagnosis import Diagnosis
    from fedplatform.experiments.callbacks import Callback
    from fedplatform.experiments.experiment import Experiment
    from fedplatform.federated.aggregation import (
        FLAME,
        LASA,
        Aggregator,
        AlignIns,
        Bucketing,
        Bulyan,
        CenteredClipping,
        DeepSight,
        DnC,
        FLDetector,
        FLTrust,
        FoolsGold,
        GeometricMedian,
        Krum,
        Mean,
        Median,
        Mixed,
        MultiKrum,
        NearestNeighbourMixing,
        NormClipping,
        SignGuard,
        TrimmedMean,
        WeightedMean,
    )
    from fedplatform.federated.trust import OptiGradTrust

# Where each public name is defined.
_HOMES = {
    "fedplatform.api.defending": ("Defence", "defend", "evaluate"),
    "fedplatform.api.result": ("Page", "Result"),
    "fedplatform.api.rules": ("aggregate",),
    "fedplatform.api.training": ("compare", "run"),
    "fedplatform.core.errors": ("FedplatformError",),
    "fedplatform.core.messages": ("Aggregate", "Evidence"),
    "fedplatform.core.settings": ("ExperimentError",),
    "fedplatform.data.error": ("DataError",),
    "fedplatform.data.memory": ("from_arrays",),
    "fedplatform.defence.defended_classifier": ("DefendedClassifier",),
    "fedplatform.defence.diagnosis": ("Diagnosis",),
    "fedplatform.experiments.callbacks": ("Callback",),
    "fedplatform.experiments.experiment": ("Experiment",),
    "fedplatform.federated.aggregation": (
        *("Aggregator", "Bucketing", "Bulyan", "CenteredClipping", "DnC", "FLAME", "FLTrust", "GeometricMedian"),
        *("Krum", "Mean", "Median", "Mixed", "MultiKrum", "NearestNeighbourMixing", "NormClipping", "SignGuard"),
        *("TrimmedMean", "WeightedMean", "AlignIns", "DeepSight", "FLDetector", "FoolsGold", "LASA"),
    ),
    "fedplatform.federated.trust": ("OptiGradTrust",),
}
_HOME_OF = {name: (module, name) for module, names in _HOMES.items() for name in names}
_HOME_OF["Ray"] = ("actors.engine", "RayEngine")

__all__ = [
    "FLAME",
    "LASA",
    "Aggregate",
    "Aggregator",
    "AlignIns",
    "Bucketing",
    "Bulyan",
    "Callback",
    "CenteredClipping",
    "DataError",
    "DeepSight",
    "Defence",
    "DefendedClassifier",
    "Diagnosis",
    "DnC",
    "Evidence",
    "Experiment",
    "ExperimentError",
    "FLDetector",
    "FLTrust",
    "FedplatformError",
    "FoolsGold",
    "GeometricMedian",
    "Krum",
    "Mean",
    "Median",
    "Mixed",
    "MultiKrum",
    "NearestNeighbourMixing",
    "NormClipping",
    "OptiGradTrust",
    "Page",
    "Ray",
    "Result",
    "SignGuard",
    "TrimmedMean",
    "WeightedMean",
    "aggregate",
    "attacks",
    "compare",
    "defend",
    "evaluate",
    "from_arrays",
    "run",
]


def __getattr__(name: str) -> object:
    """Import a public name on its first use (PEP 562)."""
    if name == "attacks":
        return import_module("fedplatform.attacks")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fedplatform' has no attribute {name!r}")
    module, attribute = _HOME_OF[name]
    try:
        value: object = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        from fedplatform.core.extras import advice

        error.add_note(advice(error) or "")
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
