"""The study ``evasion``: the strongest attack on a scan, against the full defence of a run, at one epsilon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from ray import tune as ray_tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search.sample import Domain

from fedplatform.attacks.evasion import APGD, PGD, EvasionAttack, MomentumPGD, Target
from fedplatform.core.seeding import torch_generator
from fedplatform.data.splits import Role
from fedplatform.defence import DefendedClassifier, FreshNoise
from fedplatform.defence.threats import Budget, StraightThrough, Victim, attack_hospital, check_within
from tune.defended import DefendedStudy
from tune.study import Goal, Workplace
from tune.trial import Choice, Figures

VIEWS = ("classifier", "straight_through", "exact")


@dataclass(frozen=True)
class Evasion(DefendedStudy):
    """The attack under which the defence answers rightly least often, all with the same ``gradients`` a scan.

    A choice is the method, the loss that is climbed, through what the gradient goes (the bare classifier; the whole
    with its purifier taken for the identity; the whole), how many gradients are averaged in a step (EOT), and the
    length of a step over epsilon; steps are what the budget then allows.
    """

    gradients: int = 40

    @property
    def objectives(self) -> Mapping[str, Goal]:
        """The attacker wants wrong answers."""
        return {"accuracy": "min"}

    def space(self) -> Mapping[str, Domain]:
        """Methods of :mod:`fedplatform.attacks.evasion` that take a gradient."""
        return {
            "method": ray_tune.choice(["pgd", "momentum_pgd", "apgd"]),
            "loss": ray_tune.choice(["cross_entropy", "margin"]),
            "view": ray_tune.choice(list(VIEWS)),
            "eot": ray_tune.choice([1, 2, 4, 8]),
            "stepsize": ray_tune.loguniform(0.05, 1.0),
        }

    def steps(self, choice: Choice, place: Workplace, role: Role) -> Iterator[Figures]:  # noqa: ARG002
        """The share of right answers so far, after every hospital."""
        right = flagged = scans = 0
        for ward in self.wards(role):
            defended = ward.parts.defended("full")
            generator = torch_generator(self.seed, "tune", "evasion", ward.parts.hospital_id)
            if "tier" in choice:
                attacked = attack_hospital(
                    str(choice["tier"]),
                    Victim(defended, ward.neighbour),
                    ward.images,
                    ward.labels,
                    epsilon=self.epsilon,
                    budget=Budget(steps=max(1, self.gradients // 4), eot=4),
                    generator=generator,
                )
            else:
                target = view_of(defended, str(choice["view"]), generator)
                attacked = self._attack(choice)(target, ward.images, ward.labels, generator=generator)
                check_within(attacked, ward.images, self.epsilon)
            diagnoses = defended.diagnose(attacked)
            right += sum(found.label == label for found, label in zip(diagnoses, ward.labels.tolist(), strict=True))
            flagged += sum(found.flagged for found in diagnoses)
            scans += len(ward.labels)
            yield {"accuracy": right / scans, "flagged": flagged / scans}

    def starts(self) -> Sequence[Choice]:
        """PGD as the tiers T2, T3 and T4 have it."""
        usual = {"method": "pgd", "loss": "cross_entropy", "eot": 1, "stepsize": 0.125}
        return [{**usual, "view": view} for view in VIEWS]

    def references(self) -> dict[str, Choice]:
        """Nobody attacks; the tiers of 'fedplatform evaluate', with the same budget."""
        return {tier: {"tier": tier} for tier in ("T0", "T2", "T4")}

    def scheduler(self) -> TrialScheduler | None:
        """None: the share of a few hospitals says little of that of all."""
        return None

    def files(self, winner: Choice) -> Mapping[str, Mapping[str, object]]:
        """``attack.yaml``: the attack of :mod:`fedplatform.attacks.evasion`, and through what its gradient goes."""
        return {"attack.yaml": {"attack": repr(self._attack(winner)), "view": winner["view"], "run": self.run}}

    def _attack(self, choice: Choice) -> EvasionAttack:
        eot = int(choice["eot"])
        steps = max(1, self.gradients // eot)
        match choice["method"]:
            case "momentum_pgd":
                return MomentumPGD(self.epsilon, steps=steps, eot=eot)
            case "apgd":
                return APGD(self.epsilon, steps=steps, eot=eot, loss=choice["loss"])
            case _:
                stepsize = self.epsilon * float(choice["stepsize"])
                return PGD(self.epsilon, steps=steps, eot=eot, loss=choice["loss"], stepsize=stepsize)


def view_of(defended: DefendedClassifier, view: str, generator: torch.Generator) -> Target:
    """What an attacker differentiates: one copy a call, under noise of his own, for he does not know the key."""
    if view == "classifier":
        return defended.classifier
    purifier = StraightThrough(defended.purifier) if view == "straight_through" else defended.purifier
    return replace(defended, purifier=purifier, copies=(0,), noise=FreshNoise(generator)).logits
