"""One hospital's test scans under attack, and how its defence answers them; one row a scan."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch

from fedplatform.core.seeding import torch_generator
from fedplatform.data.images import scans_at_once
from fedplatform.defence import DefendedClassifier, DiffusionPurifier, FreshNoise
from fedplatform.defence.presets import HospitalParts
from fedplatform.defence.threats import Budget, Victim, attack_hospital
from fedplatform.experiments.baselines import NEAREST_NEIGHBOUR, look_up
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.experiments.defence.plan import EASY_TIERS, Plan, Task
from fedplatform.experiments.experiment import Experiment
from fedplatform.learning.training import CrossEntropy

FRESH_DRAWS = 10  # of the defence's own noise, by which what an attacker who knows of it has made is judged
BATCH = 25


def attack_scans(path: Path, shards: Path, task: Task, plan: Plan) -> list[dict[str, object]]:
    """Attack one hospital's scans and judge the answers; one row a scan."""
    run, parts = opened(path, shards), parts_of(path, shards, task.hospital_id)
    looked_up = task.defence == NEAREST_NEIGHBOUR
    defence = "no_defence" if looked_up else task.defence
    defended = _defended(path, shards, task.hospital_id, defence)
    easy = task.tier in EASY_TIERS
    chosen = spread_evenly(len(parts.test[1]), -(-(plan.scans if easy else plan.hard_scans) // len(run.tested)))
    heading = {
        "defence": task.defence,
        "adversarial_training": trained_adversarially(run.experiment),
        "tier": task.tier,
        "epsilon": task.epsilon,
        "seed": run.experiment.seed,
        "hospital_id": task.hospital_id,
    }
    rows = []
    batch = scans_at_once(BATCH, run.manifest.settings.size)
    for first in range(0, len(chosen), batch):
        these = tuple(chosen[first : first + batch].tolist())
        if easy and defended.classifier is parts.classifier:
            defence = "no_defence"  # an attacker who knows the classifier alone makes the same of all its defences
        attacked = _attacked(path, shards, replace(task, defence=defence), plan.budget, these)
        labels = parts.test[1][list(these)]
        if looked_up:
            judged = _look_up(run, attacked, labels)
        else:
            draws = 1 if easy else FRESH_DRAWS
            judged = judge_scans(defended, attacked, labels, seed=run.experiment.seed, draws=draws)
        rows += [
            {
                **heading,
                "row": int(parts.test_rows[place]),
                "group": int(parts.test_groups[place]),
                "label": int(label),
                **row,
            }
            for place, label, row in zip(these, labels.tolist(), judged, strict=True)
        ]
    return rows


@lru_cache(maxsize=8)
def _attacked(path: Path, shards: Path, task: Task, budget: Budget, places: tuple[int, ...]) -> torch.Tensor:
    """The test scans at ``places`` as the attacker of a task leaves them."""
    run, parts = opened(path, shards), parts_of(path, shards, task.hospital_id)
    after = (run.tested.index(task.hospital_id) + 1) % len(run.tested)
    neighbour = parts_of(path, shards, run.tested[after])
    return attack_hospital(
        task.tier,
        Victim.of(parts, neighbour, _defended(path, shards, task.hospital_id, task.defence)),
        parts.test[0][list(places)],
        parts.test[1][list(places)],
        epsilon=task.epsilon,
        budget=budget,
        generator=torch_generator(run.experiment.seed, "evasion", task.tier, task.hospital_id, places[0]),
    )


def trained_adversarially(experiment: Experiment) -> bool:
    """Whether the run's classifier met attacks in training."""
    return not isinstance(experiment.objective, CrossEntropy)


def spread_evenly(count: int, wanted: int) -> np.ndarray:
    """At most ``wanted`` of ``count`` places, evenly spread, so that a set sorted by class gives all of its classes."""
    return np.linspace(0, count - 1, min(count, wanted)).round().astype(int) if count else np.zeros(0, int)


def judge_scans(
    defended: DefendedClassifier, attacked: torch.Tensor, labels: torch.Tensor, *, seed: int, draws: int
) -> list[dict[str, object]]:
    """The served answer to each scan, and what fresh draws of the defence's noise would have answered."""
    started = time.process_time()
    with counted(defended) as evaluations:
        diagnoses = defended.diagnose(attacked)
    milliseconds = 1000 * (time.process_time() - started) / len(attacked)
    right = np.zeros((draws, len(labels)), bool)
    random = isinstance(defended.purifier, DiffusionPurifier) and evaluations[0] > 0
    for draw in range(draws):
        if draw == 0 or random:
            noise = FreshNoise(torch_generator(seed, "judge", draw))
            with torch.no_grad():
                answers = defended.logits(attacked, noise=noise).argmax(dim=1)
        right[draw] = (answers == labels).numpy()
    return [
        {
            "answer": diagnosis.label,
            "mean": float(right[:, number].mean()),
            "worst": bool(right[:, number].all()),
            "score": diagnosis.anomaly_score if defended.detector is not None else float("nan"),
            "threshold": diagnosis.threshold,
            "flagged": diagnosis.flagged,
            "referred": diagnosis.referred,
            "depth": diagnosis.depth,
            "evaluations": evaluations[0] / len(attacked),
            "milliseconds": milliseconds,
        }
        for number, diagnosis in enumerate(diagnoses)
    ]


@contextmanager
def counted(defended: DefendedClassifier) -> Iterator[list[int]]:
    """How many scans the purifier's network is shown, counted in the one entry of a list."""
    count = [0]
    if not isinstance(defended.purifier, DiffusionPurifier):
        yield count
        return

    def add(_network: object, inputs: tuple[torch.Tensor, ...], _output: object) -> None:
        count[0] += len(inputs[0])

    hook = defended.purifier.network.register_forward_hook(add)
    try:
        yield count
    finally:
        hook.remove()


@lru_cache(maxsize=1)
def opened(path: Path, shards: Path) -> DefendedRun:
    """A run, read once a process."""
    return DefendedRun(path, shards=shards)


@cache
def parts_of(path: Path, shards: Path, hospital_id: str) -> HospitalParts:
    """A hospital's parts, read once a process."""
    return opened(path, shards).hospital(hospital_id)


@lru_cache(maxsize=128)
def _defended(path: Path, shards: Path, hospital_id: str, defence: str) -> DefendedClassifier:
    return parts_of(path, shards, hospital_id).defended(defence)


_neighbours = lru_cache(maxsize=1)(look_up)


def _look_up(run: DefendedRun, attacked: torch.Tensor, labels: torch.Tensor) -> list[dict[str, object]]:
    answers = _neighbours(run.shards).predict(attacked.flatten(1).numpy())
    nothing = {
        "score": float("nan"),
        "threshold": float("nan"),
        "flagged": False,
        "referred": False,
        "depth": 0,
        "evaluations": 0.0,
        "milliseconds": float("nan"),
    }
    right = answers == labels.numpy()
    return [
        {"answer": int(answer), "mean": float(is_right), "worst": bool(is_right), **nothing}
        for answer, is_right in zip(answers, right, strict=True)
    ]
