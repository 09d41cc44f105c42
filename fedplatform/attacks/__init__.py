"""Attacks on training (poisoning) and on a scan (evasion); imported on first use.

>>> from fedplatform import attacks
>>> attacks.PGD(epsilon=8 / 255, steps=10).steps
10
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedplatform.attacks.evasion import (
        APGD,
        FAB,
        FGSM,
        PGD,
        CarliniWagner,
        DetectorAware,
        Flood,
        HopSkipJump,
        MomentumPGD,
        RandomNoise,
        Square,
    )
    from fedplatform.attacks.poisoning import (
        MPAF,
        Backdoor,
        ByzMean,
        DistributedBackdoor,
        EdgeCase,
        FangKrum,
        FangTrimmedMean,
        FingerprintAware,
        FreeRider,
        GaussianNoise,
        InnerProduct,
        LabelFlip,
        LittleIsEnough,
        Mimic,
        MinMax,
        MinSum,
        ModelReplacement,
        Neurotoxin,
        OnOff,
        PartialScaling,
        PoisonedFL,
        Scaling,
        SignFlip,
        SlanderByCopying,
        SlanderInGroups,
        Sleeper,
        Whitewashing,
    )

_EVASION = (
    *("APGD", "CarliniWagner", "DetectorAware", "FAB", "FGSM", "Flood", "HopSkipJump", "MomentumPGD", "PGD"),
    *("RandomNoise", "Square"),
)

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "MPAF",
    "PGD",
    "Backdoor",
    "ByzMean",
    "CarliniWagner",
    "DetectorAware",
    "DistributedBackdoor",
    "EdgeCase",
    "FangKrum",
    "FangTrimmedMean",
    "FingerprintAware",
    "Flood",
    "FreeRider",
    "GaussianNoise",
    "HopSkipJump",
    "InnerProduct",
    "LabelFlip",
    "LittleIsEnough",
    "Mimic",
    "MinMax",
    "MinSum",
    "ModelReplacement",
    "MomentumPGD",
    "Neurotoxin",
    "OnOff",
    "PartialScaling",
    "PoisonedFL",
    "RandomNoise",
    "Scaling",
    "SignFlip",
    "SlanderByCopying",
    "SlanderInGroups",
    "Sleeper",
    "Square",
    "Whitewashing",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'fedplatform.attacks' has no attribute {name!r}")
    package = "evasion" if name in _EVASION else "poisoning"
    value: object = getattr(import_module(f"fedplatform.attacks.{package}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
