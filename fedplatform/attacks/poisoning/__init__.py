"""Lies in training (poisoning) and on inputs (evasion), as frozen dataclasses; ``ATTACKS`` names the poisonings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fedplatform.attacks.poisoning.attack import (
    Backdooring,
    Collusion,
    DataPoisoning,
    Intermittent,
    PoisoningAttack,
    Situation,
    UpdatePoisoning,
)
from fedplatform.attacks.poisoning.backdoors import DistributedBackdoor, EdgeCase, ModelReplacement, Neurotoxin
from fedplatform.attacks.poisoning.byz_mean import ByzMean
from fedplatform.attacks.poisoning.collusion import InnerProduct, LittleIsEnough, Mimic
from fedplatform.attacks.poisoning.data_poisoning import Backdoor, LabelFlip, stamp_trigger
from fedplatform.attacks.poisoning.directed_deviation import FangKrum, FangTrimmedMean
from fedplatform.attacks.poisoning.distance_bounded import MinMax, MinSum
from fedplatform.attacks.poisoning.fingerprint_aware import FingerprintAware
from fedplatform.attacks.poisoning.mpaf import MPAF
from fedplatform.attacks.poisoning.poisoned_fl import PoisonedFL
from fedplatform.attacks.poisoning.reputation import OnOff, Whitewashing
from fedplatform.attacks.poisoning.slander import SlanderByCopying, SlanderInGroups
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
        "poisoned_fl": PoisonedFL,
        "mpaf": MPAF,
        "fang_krum": FangKrum,
        "fang_trimmed_mean": FangTrimmedMean,
        "byz_mean": ByzMean,
        "model_replacement": ModelReplacement,
        "neurotoxin": Neurotoxin,
        "dba": DistributedBackdoor,
        "edge_case": EdgeCase,
        "on_off": OnOff,
        "whitewashing": Whitewashing,
        "slander_in_groups": SlanderInGroups,
        "slander_by_copying": SlanderByCopying,
    }
)

__all__ = [
    "ATTACKS",
    "MPAF",
    "Backdoor",
    "Backdooring",
    "ByzMean",
    "Collusion",
    "DataPoisoning",
    "DistributedBackdoor",
    "EdgeCase",
    "FangKrum",
    "FangTrimmedMean",
    "FingerprintAware",
    "FreeRider",
    "GaussianNoise",
    "InnerProduct",
    "Intermittent",
    "LabelFlip",
    "LittleIsEnough",
    "Mimic",
    "MinMax",
    "MinSum",
    "ModelReplacement",
    "Neurotoxin",
    "OnOff",
    "PartialScaling",
    "PoisonedFL",
    "PoisoningAttack",
    "Scaling",
    "SignFlip",
    "Situation",
    "SlanderByCopying",
    "SlanderInGroups",
    "Sleeper",
    "UpdatePoisoning",
    "Whitewashing",
    "stamp_trigger",
]
