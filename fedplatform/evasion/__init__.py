"""Attacks on a scan, in [0, 1] pixels; they know only callables. ``EVASION_ATTACKS`` names them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fedplatform.evasion.apgd import Apgd
from fedplatform.evasion.ascent import ascend
from fedplatform.evasion.attack import Decide, EvasionAttack, Score, Target
from fedplatform.evasion.carlini_wagner import CarliniWagner
from fedplatform.evasion.detector_aware import DetectorAware, Flood
from fedplatform.evasion.fab import Fab
from fedplatform.evasion.hop_skip_jump import HopSkipJump
from fedplatform.evasion.losses import cross_entropy, margin
from fedplatform.evasion.noise import RandomNoise
from fedplatform.evasion.pgd import Fgsm, MomentumPgd, Pgd
from fedplatform.evasion.projection import norm_of, project
from fedplatform.evasion.square import Square
from fedplatform.evasion.straight_through import straight_through

EVASION_ATTACKS: Mapping[str, type[EvasionAttack]] = MappingProxyType(
    {
        "noise": RandomNoise,
        "fgsm": Fgsm,
        "pgd": Pgd,
        "momentum_pgd": MomentumPgd,
        "apgd": Apgd,
        "fab": Fab,
        "carlini_wagner": CarliniWagner,
        "square": Square,
        "hop_skip_jump": HopSkipJump,
        "detector_aware": DetectorAware,
        "flood": Flood,
    }
)

__all__ = [
    "EVASION_ATTACKS",
    "Apgd",
    "CarliniWagner",
    "Decide",
    "DetectorAware",
    "EvasionAttack",
    "Fab",
    "Fgsm",
    "Flood",
    "HopSkipJump",
    "MomentumPgd",
    "Pgd",
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
