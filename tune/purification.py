"""The study ``purification``: right answers without and under attack, and milliseconds, of a trained defence."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from ray import tune as ray_tune
from ray.tune.search.sample import Domain

from fedplatform.core.statistics import effective_size
from fedplatform.data.splits import Role
from fedplatform.defence.threats import Budget
from tune.defended import DefendedStudy, opened, ward_of, with_settings
from tune.study import Goal, Workplace, is_measured
from tune.trial import Choice, Figures, State, Trial

SETTINGS = ("sampler", "probe_depth", "usual_depth", "least_depth", "most_depth", "copies", "false_positive_rate")


@dataclass(frozen=True)
class Purification(DefendedStudy):
    """Settings of the gate and the purifier that can be changed without training anything anew.

    A choice is the least depth of a flagged scan and how much deeper the most suspicious goes (t*), the steps of the
    way back, how deep every scan is probed, what becomes of scans that are not flagged, the copies that vote, and the
    share of clean scans that may be flagged. ``tier`` is who attacks (:data:`~fedplatform.defence.threats.TIERS`): T2
    knows the classifier alone, so its scans are made once for all choices; T4 knows the whole and attacks each choice
    anew, at many times the cost. ``steps`` are the attacker's.
    """

    tier: str = "T2"
    attack_steps: int = 10

    @property
    def objectives(self) -> Mapping[str, Goal]:
        """Right under attack, right without one, and quickly."""
        return {"robust_accuracy": "max", "clean_accuracy": "max", "milliseconds": "min"}

    def space(self) -> Mapping[str, Domain]:
        """Depths are noise steps of 1000, up to what the purifier has learned."""
        deepest = int(self._deepest)
        return {
            "sampler": ray_tune.choice(["one_shot", "ddim(steps=2)", "ddim(steps=5)", "dpm_solver(steps=2)"]),
            "probe_depth": ray_tune.randint(10, deepest + 1),
            "usual_depth": ray_tune.choice([0, deepest // 10, deepest // 4]),
            "least_depth": ray_tune.randint(10, deepest + 1),
            "deeper": ray_tune.uniform(0.0, 1.0),
            "copies": ray_tune.choice([1, 2, 4, 8, 16]),
            "false_positive_rate": ray_tune.loguniform(0.01, 0.5),
        }

    def steps(self, choice: Choice, place: Workplace, role: Role) -> Iterator[Figures]:  # noqa: ARG002
        """One step: scans as they are, and as the attacker leaves them."""
        right: dict[str, list[bool]] = {"clean_accuracy": [], "robust_accuracy": []}
        groups: list[int] = []
        seconds, flagged = 0.0, 0
        for ward in self.wards(role):
            changed = with_settings(ward, **self._settings(choice))
            defence = str(choice.get("defence", "full"))
            defended = changed.parts.defended(defence)
            known = (self.run, self.device, ward.parts.hospital_id, role, self.scans, defence, self.tier, self.epsilon)
            attacked = (
                attacked_once(*known, self.attack_steps, self.seed)
                if self.tier == "T2"
                else changed.attacked(defence, self.tier, self.epsilon, Budget(steps=self.attack_steps), seed=self.seed)
            )
            for name, images in (("clean_accuracy", ward.images), ("robust_accuracy", attacked)):
                began = time.process_time()
                diagnoses = defended.diagnose(images)
                if name == "clean_accuracy":  # what a hospital sees all day
                    seconds += time.process_time() - began
                    flagged += sum(diagnosis.flagged for diagnosis in diagnoses)
                right[name] += [
                    diagnosis.label == label for diagnosis, label in zip(diagnoses, ward.labels.tolist(), strict=True)
                ]
            groups += ward.groups.tolist()
        scans = len(groups)
        robust = sum(right["robust_accuracy"]) / scans
        worth = effective_size(np.array(right["robust_accuracy"]), np.array(groups))
        yield {
            "robust_accuracy": robust,
            "clean_accuracy": sum(right["clean_accuracy"]) / scans,
            "milliseconds": 1000 * seconds / scans,
            "flagged": flagged / scans,
            "standard_error": math.sqrt(robust * (1 - robust) / worth),
        }

    def starts(self) -> Sequence[Choice]:
        """The run's own settings."""
        return [self._own]

    def references(self) -> dict[str, Choice]:
        """The run's own settings, and no defence at all, attacked through its own classifier."""
        return {"default": self._own, "no defence": {**self._own, "defence": "no_defence"}}

    def choose(self, trials: Sequence[Trial]) -> Trial | None:
        """Of those no worse than the run's own settings without an attack, and about as robust as the best: its own,
        or else the quickest.

        About as robust is within one standard error, measured over groups (Breiman et al., Classification and
        Regression Trees, 1984): the best of many choices owes a part of its lead to the scans it was measured on.
        """
        whole = [t for t in trials if t.state is State.FINISHED and is_measured(t, "robust_accuracy")]
        own = next((trial for trial in whole if trial.number == 0), None)
        fit = [t for t in whole if own is None or t.figures["clean_accuracy"] >= own.figures["clean_accuracy"]]
        if not fit:
            return None
        best = max(fit, key=lambda trial: trial.figures["robust_accuracy"])
        least = best.figures["robust_accuracy"] - best.figures["standard_error"]
        near = [trial for trial in fit if trial.figures["robust_accuracy"] >= least]
        return own if own in near else min(near, key=lambda trial: trial.figures["milliseconds"])

    def files(self, winner: Choice) -> Mapping[str, Mapping[str, object]]:
        """``defence.yaml`` as it is to lie in the run's ``defence`` folder."""
        settings = opened(self.run).settings
        return {
            "defence.yaml": type(settings).from_settings({**settings.settings(), **self._settings(winner)}).settings()
        }

    @property
    def _deepest(self) -> int:
        parts = opened(self.run).hospital(opened(self.run).tested[0])
        return int(parts.network.t_max)

    @property
    def _own(self) -> Choice:
        own = opened(self.run).settings.settings()
        room = self._deepest - int(str(own["least_depth"]))
        deeper = (int(str(own["most_depth"])) - int(str(own["least_depth"]))) / room if room else 0.0
        return {**{name: own[name] for name in SETTINGS if name != "most_depth"}, "deeper": deeper}

    def _settings(self, choice: Choice) -> dict[str, object]:
        least = int(choice["least_depth"])
        chosen = {name: choice[name] for name in SETTINGS if name in choice}
        return {**chosen, "most_depth": least + round(float(choice["deeper"]) * (self._deepest - least))}


@lru_cache(maxsize=64)
def attacked_once(
    run: str,
    device: str,
    hospital_id: str,
    role: Role,
    scans: int,
    defence: str,
    tier: str,
    epsilon: float,
    steps: int,
    seed: int,
) -> torch.Tensor:
    """Scans of a hospital attacked by one who does not know the defence's settings: the same for every choice."""
    tested = opened(run).tested
    neighbour = tested[(tested.index(hospital_id) + 1) % len(tested)]
    ward = ward_of(run, hospital_id, neighbour, role, scans, device)
    return ward.attacked(defence, tier, epsilon, Budget(steps=steps), seed=seed)
