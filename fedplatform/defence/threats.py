"""The threat tiers: what an attacker of one hospital's defence knows, from nothing to everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Self

import torch
from torch import nn

from fedplatform.attacks.evasion import (
    PGD,
    DetectorAware,
    Flood,
    HopSkipJump,
    Square,
    Target,
    margin,
    straight_through,
)
from fedplatform.core.errors import FedplatformError
from fedplatform.defence import DefendedClassifier, DiffusionPurifier, FreshNoise, Passage, Purifier
from fedplatform.defence.named_attack import parse_attack
from fedplatform.defence.presets import HospitalParts

COMPARING_DRAWS = 8  # of noise, by which an attacker who knows the defence chooses between two attacks of his
STRONG = 2.5  # times the steps and the gradients a step: 50 and 10 with the usual budget
SAFE_DISTANCE = 1.0  # robust deviations below the threshold that are aimed at: the served noise moves the score, too
PAPER_EPSILON, PAPER_STEPS, PAPER_STEPSIZE = 0.015, 7, 0.003  # of MedFedPure's table 2, here in pixels of [0, 1]


@dataclass(frozen=True)
class Budget:
    """What an attacker may spend on a scan: steps, gradients averaged in each, questions to a black box.

    ``penalty`` is what a detector-aware attacker pays for each robust deviation above the threshold.
    """

    steps: int = 20
    eot: int = 4
    queries: int = 500
    penalty: float = 1.0


@dataclass(frozen=True, eq=False)
class Victim:
    """A hospital under attack: its full defence, and the bare classifier of another hospital of its federation."""

    defended: DefendedClassifier
    neighbour: nn.Module

    @classmethod
    def of(cls, parts: HospitalParts, neighbour: HospitalParts, defended: DefendedClassifier) -> Self:
        """A defence made of ``parts``; the neighbour's classifier is the tuned one where the defence's own is."""
        tuned = defended.classifier is parts.tuned
        return cls(defended, neighbour.tuned if tuned else neighbour.classifier)


@dataclass(frozen=True, eq=False)
class Attacker:
    """Somebody who may move every pixel by ``epsilon`` and draws from ``generator``; a method for each tier.

    Every method takes images (n, c, h, w) and their labels (n,) and returns attacked images.
    """

    epsilon: float
    budget: Budget
    generator: torch.Generator

    def no_attack(self, victim: Victim, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """T0: the scans as they are."""
        return images

    def transfer(self, victim: Victim, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """T1: another hospital attacks through its own personal classifier (internal attack of pFedDef, Kim 2022)."""
        return PGD(self.epsilon, self.budget.steps)(victim.neighbour, images, labels, generator=self.generator)

    def as_in_the_paper(self, victim: Victim, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """T2 as MedFedPure states it: PGD-7 in steps of a fifth of epsilon on the classifier alone."""
        paper = PGD(self.epsilon, PAPER_STEPS, stepsize=self.epsilon * PAPER_STEPSIZE / PAPER_EPSILON)
        return paper(victim.defended.classifier, images, labels, generator=self.generator)

    def grey_box(self, victim: Victim, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """T2: the gradient of the classifier, nothing known of detector and purifier."""
        return PGD(self.epsilon, self.budget.steps)(
            victim.defended.classifier, images, labels, generator=self.generator
        )

    def approximate(self, victim: Victim, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """T3: everything is known, but the gradient of the purifier is taken for the identity (BPDA + EOT)."""
        defended = replace(victim.defended, purifier=StraightThrough(victim.defended.purifier))
        return self._descend(defended, images, labels)

    def exact(self, victim: Victim, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """T4: the exact gradient through gate, purifier and classifier (EOT), or the grey box's attack where that
        fools the defence better: the gate is a step, over which a gradient may lose its way.
        """
        defended = victim.defended
        seen = _Seen(defended, self.generator)
        candidates = self._descend(defended, images, labels), self.grey_box(victim, images, labels)
        with torch.no_grad():
            margins = torch.stack(
                [
                    torch.stack([margin(seen.logits(made), labels) for made in candidates])
                    for _ in range(COMPARING_DRAWS)
                ]
            )
        # The one that fools more draws; of equals, the one that is further beyond the boundary.
        (own_fools, grey_fools), (own, grey) = (margins > 0).float().mean(dim=0), margins.mean(dim=0)
        better = (own_fools > grey_fools) | ((own_fools == grey_fools) & (own >= grey))
        return candidates[0].where(better[:, None, None, None], candidates[1])

    def strong(self, victim: Victim, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """T4 of one who takes two and a half times the steps and averages as many times the gradients in each.

        Where T4 leaves more right than this does, its figure owes something to its budget.
        """
        steps, eot = self.budget.steps, self.budget.eot
        # One gradient is what is asked for where nothing is drawn: more of them would be the same.
        budget = replace(self.budget, steps=round(STRONG * steps), eot=eot if eot == 1 else round(STRONG * eot))
        return replace(self, budget=budget).exact(victim, images, labels)

    def unnoticed(self, victim: Victim, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """T4 of one who wants to stay below the detector's threshold; without a detector there is nothing to avoid."""
        if victim.defended.detector is None:
            return self.exact(victim, images, labels)
        seen = _Seen(victim.defended, self.generator)
        attack = DetectorAware(
            self.epsilon,
            score=seen.scores,
            threshold=victim.defended.gate.threshold - SAFE_DISTANCE,
            penalty=self.budget.penalty,
            searches=2,  # with ten times the penalty where the first leaves the scan flagged
            steps=self.budget.steps,
            eot=self.budget.eot,
        )
        return attack(seen.logits, images, labels, generator=self.generator)

    def flooding(self, victim: Victim, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """T4 of one who wants scans flagged, whatever the answer, until nobody heeds the detector any more; without a
        detector there is nothing to flood.
        """
        if victim.defended.detector is None:
            return images
        seen = _Seen(victim.defended, self.generator)
        flood = Flood(self.epsilon, seen.scores, steps=self.budget.steps, eot=self.budget.eot)
        return flood(seen.logits, images, labels, generator=self.generator)

    def black_box(self, victim: Victim, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """T5: no gradient, only the served answers and their confidence (Square)."""
        with torch.no_grad():
            square = Square(self.epsilon, queries=self.budget.queries)
            return square(victim.defended.logits, images, labels, generator=self.generator)

    def named(self, text: str, victim: Victim, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Any attack by its name, who knows the whole defence as T4 does; a black box sees what T5 does."""
        defended = victim.defended
        seen = _Seen(defended, self.generator)
        threshold = defended.gate.threshold - SAFE_DISTANCE
        attack = parse_attack(text, epsilon=self.epsilon, score=seen.scores, threshold=threshold)
        views: dict[type, Target] = {Square: defended.logits, HopSkipJump: lambda scans: _decisions(defended, scans)}
        return attack(views.get(type(attack), seen.logits), images, labels, generator=self.generator)

    def _descend(self, defended: DefendedClassifier, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen = _Seen(defended, self.generator)
        pgd = PGD(self.epsilon, self.budget.steps, eot=self.budget.eot)
        return pgd(seen.logits, images, labels, generator=self.generator)


TIERS: Mapping[str, Callable[[Attacker, Victim, torch.Tensor, torch.Tensor], torch.Tensor]] = MappingProxyType(
    {
        "T0": Attacker.no_attack,
        "T1": Attacker.transfer,
        "T2": Attacker.grey_box,
        "T2_paper": Attacker.as_in_the_paper,
        "T3": Attacker.approximate,
        "T4": Attacker.exact,
        "T4_strong": Attacker.strong,
        "T4_unnoticed": Attacker.unnoticed,
        "T4_flood": Attacker.flooding,
        "T5": Attacker.black_box,
    }
)
# Only where they are asked for: the one costs six times a T4, the other wants no wrong answers.
USUAL_TIERS = tuple(tier for tier in TIERS if tier not in ("T4_strong", "T4_flood"))
AT_DETECTORS = ("T4_unnoticed", "T4_flood")  # aimed at a detector, so a defence without one is not tried


class OutOfReachError(FedplatformError, ValueError):
    """An attack moved a scan further than it may: its figure would be worth nothing."""


def attack_hospital(
    tier: str,
    victim: Victim,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float,
    generator: torch.Generator,
    budget: Budget = Budget(),
) -> torch.Tensor:
    """A hospital's scans (n, c, h, w) with labels (n,) as the attacker of a tier leaves them.

    ``tier`` is one of :data:`TIERS`, or names an attack (:meth:`Attacker.named`). Raises :class:`OutOfReachError` where
    a pixel is moved by more than ``epsilon`` or out of [0, 1].
    """
    if not isinstance(victim.defended.purifier, DiffusionPurifier) or victim.defended.gate.closed:
        budget = replace(budget, eot=1)  # nothing is drawn that one could average over
    attacker = Attacker(epsilon, budget, generator)
    if tier in TIERS:
        attacked = TIERS[tier](attacker, victim, images, labels)
    else:
        attacked = attacker.named(tier, victim, images, labels)
    check_within(attacked, images, epsilon)
    return attacked


def _decisions(defended: DefendedClassifier, images: torch.Tensor) -> torch.Tensor:
    """The served answers (n,), -1 where a scan is referred."""
    said = [-1 if found.referred else found.label for found in defended.diagnose(images)]
    return torch.tensor(said).to(images.device)


def check_within(attacked: torch.Tensor, images: torch.Tensor, epsilon: float) -> None:
    """Raise :class:`OutOfReachError` where scans are not within ``epsilon`` of ``images`` and [0, 1]."""
    if attacked.shape != images.shape:
        raise OutOfReachError(f"an attack made {tuple(attacked.shape)} of scans {tuple(images.shape)}")
    moved = float((attacked - images).abs().max()) if len(images) else 0.0
    if not (moved <= epsilon + 1e-6 and ((attacked >= 0) & (attacked <= 1)).all()):  # not a number is too far, too
        raise OutOfReachError(f"an attack within {epsilon} moved a pixel by {moved}")


@dataclass(frozen=True)
class StraightThrough:
    """A purifier as itself forwards and as the identity backwards (BPDA, Athalye et al., ICML 2018)."""

    purifier: Purifier

    def __call__(self, images: torch.Tensor, depth: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """See :class:`Purifier`."""
        return straight_through(lambda scans: self.purifier(scans, depth, noise))(images)


class _Seen:
    """The full defence as an attacker's gradient sees it: one copy a call, under noise of the attacker's own.

    The attacker does not know the key of the served noise, and averaging over calls takes the place of copies, each
    call seeing its copy from another side.
    """

    def __init__(self, defended: DefendedClassifier, generator: torch.Generator) -> None:
        self._generator = generator
        self._defended = replace(defended, noise=FreshNoise(generator))
        self._images: torch.Tensor | None = None
        self._passage: Passage | None = None

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        """The anomaly scores (n,); the passage is kept for :meth:`logits` of the very same images."""
        self._images, self._passage = images, self._pass(images)
        return self._passage.scores

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """The logits (n, k)."""
        passage, self._passage = self._passage, None
        if passage is None or images is not self._images:
            passage = self._pass(images)
        return passage.logits

    def _pass(self, images: torch.Tensor) -> Passage:
        sides = self._defended.copies
        side = int(torch.randint(len(sides), (1,), generator=self._generator))
        return replace(self._defended, copies=sides[side : side + 1]).passage(images)
