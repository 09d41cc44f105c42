"""Attacks on a scan, in [0, 1] pixels; they know only callables. ``EVASION_ATTACKS`` names them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fedplatform.attacks.evasion.apgd import APGD
from fedplatform.attacks.evasion.ascent import ascend
from fedplatform.attacks.evasion.attack import Decide, EvasionAttack, Score, Target
from fedplatform.attacks.evasion.carlini_wagner import CarliniWagner
from fedplatform.attacks.evasion.detector_aware import DetectorAware, Flood
from fedplatform.attacks.evasion.fab import FAB
from fedplatform.attacks.evasion.hop_skip_jump import HopSkipJump
from fedplatform.attacks.evasion.losses import cross_entropy, margin
from fedplatform.attacks.evasion.noise import RandomNoise
from fedplatform.attacks.evasion.pgd import FGSM, PGD, MomentumPGD
from fedplatform.attacks.evasion.projection import norm_of, project
from fedplatform.attacks.evasion.square import Square
from fedplatform.attacks.evasion.straight_through import straight_through

EVASION_ATTACKS: Mapping[str, type[EvasionAttack]] = MappingProxyType(
    {
        "noise": RandomNoise,
        "fgsm": FGSM,
        "pgd": PGD,
        "momentum_pgd": MomentumPGD,
        "apgd": APGD,
        "fab": FAB,
        "carlini_wagner": CarliniWagner,
        "square": Square,
        "hop_skip_jump": HopSkipJump,
        "detector_aware": DetectorAware,
        "flood": Flood,
    }
)

__all__ = [
    "APGD",
    "EVASION_ATTACKS",
    "FAB",
    "FGSM",
    "PGD",
    "CarliniWagner",
    "Decide",
    "DetectorAware",
    "EvasionAttack",
    "Flood",
    "HopSkipJump",
    "MomentumPGD",
    "RandomNoise",
    "Score",
    "Square",
    "Target",
    "ascend",
    "cross_entropy",
    "margin",
    "norm_of",
    "project",
    "straight_through",
]
