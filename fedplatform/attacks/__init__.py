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
        Backdoor,
        FingerprintAware,
        FreeRider,
        GaussianNoise,
        InnerProduct,
        LabelFlip,
        LittleIsEnough,
        Mimic,
        MinMax,
        MinSum,
        PartialScaling,
        Scaling,
        SignFlip,
        Sleeper,
    )

_EVASION = (
    *("APGD", "CarliniWagner", "DetectorAware", "FAB", "FGSM", "Flood", "HopSkipJump", "MomentumPGD", "PGD"),
    *("RandomNoise", "Square"),
)

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "PGD",
    "Backdoor",
    "CarliniWagner",
    "DetectorAware",
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
    "MomentumPGD",
    "PartialScaling",
    "RandomNoise",
    "Scaling",
    "SignFlip",
    "Sleeper",
    "Square",
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
