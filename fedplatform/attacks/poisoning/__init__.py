"""Lies in training (poisoning) and on inputs (evasion), as frozen dataclasses; ``ATTACKS`` names the poisonings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fedplatform.attacks.poisoning.attack import Collusion, DataPoisoning, PoisoningAttack, Situation, UpdatePoisoning
from fedplatform.attacks.poisoning.collusion import InnerProduct, LittleIsEnough, Mimic
from fedplatform.attacks.poisoning.data_poisoning import Backdoor, LabelFlip, stamp_trigger
from fedplatform.attacks.poisoning.distance_bounded import MinMax, MinSum
from fedplatform.attacks.poisoning.fingerprint_aware import FingerprintAware
from fedplatform.attacks.poisoning.update_poisoning import (
    FreeRider,
    GaussianNoise,
    PartialScaling,
    Scaling,
    SignFlip,
    Sleeper,
)

ATTACKS: Mapping[str, type[PoisoningAttack]] = MappingProxyType(
    {
        "label_flip": LabelFlip,
        "backdoor": Backdoor,
        "sign_flip": SignFlip,
        "scaling": Scaling,
        "partial_scaling": PartialScaling,
        "gaussian_noise": GaussianNoise,
        "free_rider": FreeRider,
        "sleeper": Sleeper,
        "alie": LittleIsEnough,
        "ipm": InnerProduct,
        "min_max": MinMax,
        "min_sum": MinSum,
        "mimic": Mimic,
        "fingerprint_aware": FingerprintAware,
    }
)

__all__ = [
    "ATTACKS",
    "Backdoor",
    "Collusion",
    "DataPoisoning",
    "FingerprintAware",
    "FreeRider",
    "GaussianNoise",
    "InnerProduct",
    "LabelFlip",
    "LittleIsEnough",
    "Mimic",
    "MinMax",
    "MinSum",
    "PartialScaling",
    "PoisoningAttack",
    "Scaling",
    "SignFlip",
    "Situation",
    "Sleeper",
    "UpdatePoisoning",
    "stamp_trigger",
]
