"""Attackers and defences as a person reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

CLEAN = "T0"
TIERS: Mapping[str, str] = MappingProxyType(  # a name, a colon and what the attacker knows
    {
        "T0": "Nobody: the scans as they are.",
        "T1": "Transfer: another hospital of the federation attacks through its own model and knows no other.",
        "T2": "Grey box: the attacker has this hospital's classifier and its gradient, and knows of no defence.",
        "T2_paper": "Grey box of the paper: the attack MedFedPure reports, seven steps on the classifier alone.",
        "T3": "White box, approximate: all is known, but the purifier's gradient is taken for the identity (BPDA), "
        "averaged over the defence's noise (EOT).",
        "T4": "White box, exact: the true gradient through gate, purifier and classifier, averaged likewise (EOT).",
        "T4_strong": "White box with patience: as T4, with two and a half times the steps and gradients in each.",
        "T4_unnoticed": "Unnoticed: as T4, while trying to stay below the detector's threshold.",
        "T4_flood": "Flood: as T4, but wants scans flagged, whatever the answer, until nobody heeds the detector.",
        "T5": "Black box: no gradient, only the served answers and their confidence, asked for many times.",
    }
)
ATTACKS = ("T1", "T2", "T3", "T4", "T5")  # a minimum that leaves one of these out says so
DEFENCES: Mapping[str, str] = MappingProxyType(  # a later one's curve is drawn on top of an earlier one's
    {
        "nearest_neighbour": "nearest neighbour",
        "blur": "Gaussian blur",
        "jpeg": "JPEG",
        "bit_depth": "bit depth",
        "no_defence": "no defence",
        "tta": "test-time augmentation, no purification",
        "tta_tuned": "tuned classifier, test-time augmentation, no purification",
        "purify_all": "purify everything",
        "purify_all_tuned": "purify everything, tuned classifier",
        "mae_gate": "MAE gate, fixed depth",
        "fast": "fast preset: the sensor alone, one view",
        "full": "full defence",
    }
)
REFERENCES = ("nearest_neighbour",)  # shown beside, never best: it has no gradient that T3 to T5 could follow


def is_named_attack(tier: str) -> bool:
    """Whether this is no tier but an attack that was asked for by its name, as ``fab(steps=50)``."""
    return tier not in TIERS and not re.match(r"T\d", tier)


def in_order(tiers: Iterable[str]) -> tuple[str, ...]:
    """Each once: the tiers from T0 upwards, then attacks asked for by name."""
    found = set(tiers)
    return (*(tier for tier in TIERS if tier in found), *sorted(found - set(TIERS)))


def tier_meaning(tier: str) -> str:
    """What the attacker knows, in a sentence."""
    return TIERS.get(tier, f"{tier}: an attack asked for by its name, on the whole defence, with its own budget.")


def tier_words(tier: str) -> str:
    """``T3: White box, approximate``; an attack asked for by its name as it was named."""
    return tier if is_named_attack(tier) else f"{tier}: {TIERS[tier].split(':')[0]}"


def defence_words(defence: str, *, adversarial_training: bool) -> str:
    """``full defence, adversarially trained``; a name unknown here is shown as it is."""
    return DEFENCES.get(defence, defence) + (", adversarially trained" if adversarial_training else "")


def epsilon_words(epsilon: float) -> str:
    """``8/255`` where it is whole steps of an 8-bit picture, else ``0.015``."""
    steps = 255 * epsilon
    return f"{round(steps)}/255" if epsilon and abs(steps - round(steps)) < 1e-3 else f"{epsilon:g}"
