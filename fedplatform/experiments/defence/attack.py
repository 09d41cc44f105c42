"""One hospital's test scans under attack, and how its defence answers them; one row a scan."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch

from fedplatform.core.compute import Compute
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

log = logging.getLogger(__name__)

FRESH_DRAWS = 10  # of the defence's own noise, by which what an attacker who knows of it has made is judged
BATCH = 25


@dataclass(frozen=True)
class Place:
    """Where a run's defence lies and where it computes: what the processes of an evaluation are told."""

    path: Path
    shards: Path
    compute: Compute  # of :meth:`Compute.here`


def computing_on(device: str) -> Compute:
    """The device that is asked for, told of in a line where it is no CPU. Raises :class:`ComputeError`."""
    compute = Compute.of(device)
    if not compute.is_cpu:
        log.warning("computing on %s: figures may differ from a CPU's in their last digits", compute.device)
    return compute


def attack_scans(place: Place, task: Task, plan: Plan) -> list[dict[str, object]]:
    """Attack one hospital's scans and judge the answers; one row a scan."""
    with place.compute.computing():
        return _attack_scans(place, task, plan)


def _attack_scans(place: Place, task: Task, plan: Plan) -> list[dict[str, object]]:
    run, parts = opened(place), parts_of(place, task.hospital_id)
    looked_up = task.defence == NEAREST_NEIGHBOUR
    defence = "no_defence" if looked_up else task.defence
    defended = _defended(place, task.hospital_id, defence)
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
        attacked = _attacked(place, replace(task, defence=defence), plan.budget, these)
        labels = parts.test[1][torch.tensor(these)]
        if looked_up:
            judged = _look_up(run, attacked, labels)
        else:
            draws = 1 if easy else FRESH_DRAWS
            judged = judge_scans(defended, attacked, labels, seed=run.experiment.seed, draws=draws)
        rows += [
            {
                **heading,
                "row": int(parts.test_rows[scan]),
                "group": int(parts.test_groups[scan]),
                "label": int(label),
                **row,
            }
            for scan, label, row in zip(these, labels.cpu().tolist(), judged, strict=True)
        ]
    return rows


@lru_cache(maxsize=8)
def _attacked(place: Place, task: Task, budget: Budget, rows: tuple[int, ...]) -> torch.Tensor:
    """The test scans at ``rows`` as the attacker of a task leaves them."""
    run, parts = opened(place), parts_of(place, task.hospital_id)
    after = (run.tested.index(task.hospital_id) + 1) % len(run.tested)
    neighbour = parts_of(place, run.tested[after])
    return attack_hospital(
        task.tier,
        Victim.of(parts, neighbour, _defended(place, task.hospital_id, task.defence)),
        parts.test[0][torch.tensor(rows)],
        parts.test[1][torch.tensor(rows)],
        epsilon=task.epsilon,
        budget=budget,
        generator=torch_generator(run.experiment.seed, "evasion", task.tier, task.hospital_id, rows[0]),
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
        right[draw] = (answers == labels).cpu().numpy()
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
def opened(place: Place) -> DefendedRun:
    """A run, read once a process."""
    return DefendedRun(place.path, shards=place.shards, device=place.compute.place)


@cache
def parts_of(place: Place, hospital_id: str) -> HospitalParts:
    """A hospital's parts, read once a process."""
    return opened(place).hospital(hospital_id)


@lru_cache(maxsize=128)
def _defended(place: Place, hospital_id: str, defence: str) -> DefendedClassifier:
    return parts_of(place, hospital_id).defended(defence)


_neighbours = lru_cache(maxsize=1)(look_up)


def _look_up(run: DefendedRun, attacked: torch.Tensor, labels: torch.Tensor) -> list[dict[str, object]]:
    answers = _neighbours(run.shards).predict(attacked.flatten(1).cpu().numpy())
    nothing = {
        "score": float("nan"),
        "threshold": float("nan"),
        "flagged": False,
        "referred": False,
        "depth": 0,
        "evaluations": 0.0,
        "milliseconds": float("nan"),
    }
    right = answers == labels.cpu().numpy()
    return [
        {"answer": int(answer), "mean": float(is_right), "worst": bool(is_right), **nothing}
        for answer, is_right in zip(answers, right, strict=True)
    ]
