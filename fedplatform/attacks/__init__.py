"""Lies in training (poisoning) and on inputs (evasion), as frozen dataclasses; ``ATTACKS`` names the poisonings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fedplatform.attacks.collusion import InnerProduct, LittleIsEnough, Mimic
from fedplatform.attacks.data_poisoning import Backdoor, LabelFlip, stamp_trigger
from fedplatform.attacks.distance_bounded import MinMax, MinSum
from fedplatform.attacks.fingerprint_aware import FingerprintAware
from fedplatform.attacks.poisoning import Collusion, DataPoisoning, PoisoningAttack, Situation, UpdatePoisoning
from fedplatform.attacks.update_poisoning import FreeRider, GaussianNoise, PartialScaling, Scaling, SignFlip, Sleeper

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
