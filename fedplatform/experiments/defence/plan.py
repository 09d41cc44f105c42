"""What an evaluation attacks, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedplatform.defence.named_attack import aims_at_detector
from fedplatform.defence.presets import DEFENCES, GATED
from fedplatform.defence.threats import AT_DETECTORS, USUAL_TIERS, Budget
from fedplatform.experiments.baselines import NEAREST_NEIGHBOUR
from fedplatform.experiments.experiment import ExperimentError

EASY_TIERS = ("T0", "T1", "T2", "T2_paper")  # their attackers do not know the defence: cheap, so on more scans


@dataclass(frozen=True)
class Plan:
    """What to attack and how hard.

    ``scans`` are the test scans of all hospitals together that the cheap tiers (T0 to T2) attack, ``hard_scans`` those
    of the others; epsilons are in pixels of [0, 1]. ``attacks`` are tried beside the tiers, each by its name and with
    its own budget: ``fab(steps=50)``. Raises :class:`ExperimentError` for epsilons that are none,
    :class:`SpecificationError` for a text that names no attack.
    """

    defences: tuple[str, ...] = (NEAREST_NEIGHBOUR, *DEFENCES)
    tiers: tuple[str, ...] = USUAL_TIERS
    epsilons: tuple[float, ...] = (0.015, 8 / 255)
    scans: int = 300
    hard_scans: int = 100
    budget: Budget = field(default_factory=Budget)
    attacks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for attack in self.attacks:
            aims_at_detector(attack)
        if not self.epsilons or not all(0 < epsilon <= 1 for epsilon in self.epsilons):
            raise ExperimentError(f"epsilons are in pixels of [0, 1], as 8/255, got {list(self.epsilons)}")


@dataclass(frozen=True)
class Task:
    """One row against one tier at one epsilon, on the scans of one hospital."""

    defence: str
    tier: str
    epsilon: float
    hospital_id: str

    def __str__(self) -> str:
        return f"{self.defence} against {self.tier} at {self.epsilon:.4f}, {self.hospital_id}"


def tasks_of(plan: Plan, hospitals: Sequence[str]) -> list[Task]:
    """All tasks in order, each once: tier by tier, so that a table that is cut off lacks its most costly columns.

    The rows of one hospital follow each other, for the cheap tiers show all of them the same scans. The look-up of the
    nearest neighbour has no gradient and no scores: only scans made for another model can be shown to it. Who aims at
    a detector needs one.
    """
    at_detectors = {*AT_DETECTORS, *filter(aims_at_detector, plan.attacks)}
    tasks = [
        Task(defence, tier, epsilon, hospital)
        for tier in (*plan.tiers, *plan.attacks)
        for epsilon in (plan.epsilons if tier != "T0" else (0.0,))
        for hospital in hospitals
        for defence in plan.defences
        if (defence != NEAREST_NEIGHBOUR or tier in EASY_TIERS) and (tier not in at_detectors or defence in GATED)
    ]
    return list(dict.fromkeys(tasks))
