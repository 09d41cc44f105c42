"""The evaluation of a run's defence: every row of the table against every tier, scan by scan, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from fedplatform.core.files import alone_in, claim, write_whole
from fedplatform.core.seeding import torch_generator
from fedplatform.core.statistics import effective_size
from fedplatform.core.workers import as_they_finish, workers
from fedplatform.defence import DefendedClassifier, DiffusionPurifier, FreshNoise, step_of
from fedplatform.defence.named_attack import aims_at_detector
from fedplatform.defence.presets import DEFENCES, GATED, HospitalParts
from fedplatform.defence.threats import AT_DETECTORS, TIERS, USUAL_TIERS, Budget, Victim, attack_hospital
from fedplatform.experiments.baselines import NEAREST_NEIGHBOUR, look_up
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.learning.training import CrossEntropy

EASY_TIERS = ("T0", "T1", "T2", "T2_paper")  # their attackers do not know the defence: cheap, so on more scans
FRESH_DRAWS = 10  # of the defence's own noise, by which what an attacker who knows of it has made is judged
BATCH = 25
SHARE_OF_TABLES = 0.05  # of the time of an evaluation, for showing how far it has come
ORDER = {name: number for number, name in enumerate((*TIERS, NEAREST_NEIGHBOUR, *DEFENCES))}
KEYS = ["defence", "adversarial_training", "tier", "epsilon", "seed"]


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


@dataclass(frozen=True)
class Progress:
    """Where an evaluation stands: ``last`` was just finished, with what share of its scans answered rightly."""

    done: int
    total: int
    last: Task | None = None
    accuracy: float = float("nan")


Observer = Callable[[Progress], None]


def evaluate(
    path: Path,
    plan: Plan,
    *,
    jobs: int,
    shards: Path | None = None,
    observer: Observer = lambda _: None,
) -> pd.DataFrame:
    """Attack the defence of the run in ``path`` and leave ``scans.parquet`` and ``evaluation.parquet`` there.

    A task that is done is not done again. Returns one row a cell. Raises :class:`ExperimentError` where the run has no
    defence, was evaluated with another budget, or is being evaluated by another process.
    """
    run = DefendedRun(path, shards=shards)
    budget = {**asdict(plan.budget), "scans": plan.scans, "hard_scans": plan.hard_scans, "fresh_draws": FRESH_DRAWS}
    tasks = tasks_of(plan, run.tested)
    if not tasks:
        raise ExperimentError(f"no tier of {', '.join(plan.tiers)} can be tried on {', '.join(plan.defences)}")
    # Two at once would each write its own table over the other's.
    with alone_in(path, what=f"an evaluation of {path.name}"), workers(jobs) as pool:
        claim(path, budget, what="evaluation")
        results = Results(path, run)
        left = [task for task in tasks if not results.has(task)]
        done = len(tasks) - len(left)
        observer(Progress(done, len(tasks)))
        try:
            for task, rows in as_they_finish(
                left, lambda task: pool.submit(attack_scans, path, run.shards, task, plan), jobs=jobs
            ):
                results.add(rows)
                done += 1
                accuracy = float(np.mean([row["answer"] == row["label"] for row in rows])) if rows else float("nan")
                observer(Progress(done, len(tasks), task, accuracy))
        finally:
            cells = results.summarise()
    return cells


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


def _place_of(value: object) -> object:
    """Where a value of a column stands: tiers and defences in their own order, before any other name."""
    return f"{ORDER.get(value, len(ORDER)):03d} {value}" if isinstance(value, str) else value


class Results:
    """``scans.parquet``, one row a scan and cell, and what it amounts to, ``evaluation.parquet``."""

    def __init__(self, path: Path, run: DefendedRun) -> None:
        self._path, self._run = path, run
        self._parts: list[pd.DataFrame] = []
        self._due = 0.0  # when the cells are written next
        found = path / "scans.parquet"
        if found.exists():
            self._parts.append(pd.read_parquet(found))
        self._done = {
            (row.defence, row.tier, row.epsilon, row.hospital_id)
            for part in self._parts
            for row in part[["defence", "tier", "epsilon", "hospital_id"]].drop_duplicates().itertuples()
        }

    def has(self, task: Task) -> bool:
        """Whether this task is done."""
        return (task.defence, task.tier, task.epsilon, task.hospital_id) in self._done

    def add(self, rows: list[dict[str, object]]) -> None:
        """Keep the scans of a task."""
        if not rows:
            return
        frame = pd.concat([*self._parts, pd.DataFrame(rows)]).sort_values(  # whatever came first: means depend on it
            ["tier", "epsilon", "hospital_id", "defence", "row"],
            key=lambda column: column.map(_place_of),
            ignore_index=True,
        )
        self._parts = [frame]
        write_whole(self._path / "scans.parquet", lambda place: frame.to_parquet(place, index=False))
        if time.monotonic() >= self._due:
            self.summarise()

    def summarise(self) -> pd.DataFrame:
        """Write and return the cells of what there is so far: ``docs/results/defence.csv`` and more."""
        if not self._parts:
            return pd.DataFrame()
        began = time.monotonic()
        experiment, manifest = self._run.experiment, self._run.manifest
        heading = {"dataset": experiment.data_slug, "pixels": manifest.settings.size, "split": experiment.split_slug}
        cells = cells_of(self._parts[0], heading)
        write_whole(self._path / "evaluation.parquet", lambda place: cells.to_parquet(place, index=False))
        # All cells are made of all scans: after every task, that would soon take longer than the attacks.
        self._due = time.monotonic() + (time.monotonic() - began) / SHARE_OF_TABLES
        return cells


def cells_of(scans: pd.DataFrame, heading: Mapping[str, object]) -> pd.DataFrame:
    """What the scans of each cell amount to; ``heading`` are columns that all cells share."""
    rows = []
    same = ["defence", "adversarial_training", "seed"]
    clean = {keys: group["score"].to_numpy() for keys, group in scans[scans["tier"] == "T0"].groupby(same)}
    for keys, group in scans.groupby(KEYS, sort=False):
        cell = dict(zip(KEYS, keys, strict=True))
        unattacked = clean.get(tuple(cell[name] for name in same), np.zeros(0))
        right = group["answer"] == group["label"]
        rows.append(
            {
                **heading,
                **cell,
                "n": len(group),
                "groups": group["group"].nunique(),
                "effective": effective_size(right.to_numpy(), group["group"].to_numpy()),
                "accuracy": right.mean(),
                "accuracy_mean": group["mean"].mean(),
                "accuracy_worst": group["worst"].mean(),
                "wrong": (~right & ~group["referred"]).mean(),
                "flagged": group["flagged"].mean(),
                "abstained": group["referred"].mean(),
                "evaluations": group["evaluations"].mean(),
                "milliseconds": group["milliseconds"].mean(),
                "auc": detector_auc(unattacked, group["score"].to_numpy(), tier=str(cell["tier"])),
                "tpr_at_5": group["flagged"].mean() if np.isfinite(group["score"]).all() else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def detector_auc(clean: np.ndarray, attacked: np.ndarray, *, tier: str) -> float:
    """How well scores tell attacked from clean scans, 0.5 is chance; NaN without a detector or without an attack."""
    if tier == "T0" or not len(clean) or not np.isfinite(clean).all() or not np.isfinite(attacked).all():
        return float("nan")
    return float(roc_auc_score([0] * len(clean) + [1] * len(attacked), np.concatenate([clean, attacked])))


def certify_scans(
    path: Path,
    *,
    sigmas: Sequence[float],
    scans: int,
    samples: int,
    jobs: int,
    shards: Path | None = None,
    observer: Callable[[int, int], None] = lambda *_: None,
) -> pd.DataFrame:
    """Certify test scans of all hospitals and leave ``certificates.parquet``: one row a scan and sigma.

    Columns: hospital_id, row, label, answer (-1 for none), radius, sigma, samples, confidence, seed.
    """
    run = DefendedRun(path, shards=shards)
    network = run.hospital(run.tested[0]).network
    if not sigmas:
        raise ExperimentError("a certificate needs at least one sigma")
    try:
        for sigma in sigmas:
            step_of(sigma, network.abar[: network.t_max + 1])
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    asked = list(dict.fromkeys((hospital, sigma) for sigma in sigmas for hospital in run.tested))
    each = -(-scans // len(run.tested))
    found: dict[tuple[str, float], list[dict[str, object]]] = {}
    frame = pd.DataFrame()
    with workers(jobs) as pool:
        for task, rows in as_they_finish(
            asked, lambda task: pool.submit(_certify, path, run.shards, *task, each, samples), jobs=jobs
        ):
            found[task] = rows
            observer(len(found), len(asked))
            frame = pd.DataFrame([row for task in asked for row in found.get(task, [])])
            write_whole(path / "certificates.parquet", lambda place, frame=frame: frame.to_parquet(place, index=False))  # type: ignore[misc]
    return frame


def _certify(
    path: Path, shards: Path, hospital_id: str, sigma: float, scans: int, samples: int
) -> list[dict[str, object]]:
    run, parts = _opened(path, shards), _parts(path, shards, hospital_id)
    defended = parts.defended("full")
    rows: list[dict[str, object]] = []
    for place in spread_evenly(len(parts.test[1]), scans):
        row = int(parts.test_rows[place])
        generator = torch_generator(run.experiment.seed, "certificate", row)
        found = defended.certify(parts.test[0][place], sigma=sigma, samples=samples, generator=generator)
        rows.append(
            {
                "hospital_id": hospital_id,
                "row": row,
                "label": int(parts.test[1][place]),
                "answer": -1 if found.label is None else found.label,
                "radius": found.radius,
                "sigma": sigma,
                "samples": samples,
                "confidence": found.confidence,
                "seed": run.experiment.seed,
            }
        )
    return rows


def certified_accuracy(certificates: pd.DataFrame, radii: Sequence[float]) -> pd.DataFrame:
    """Share of scans whose right class is certified to each radius; a row a sigma, a column a radius."""
    rows = []
    for sigma, group in certificates.groupby("sigma"):
        right = group["answer"] == group["label"]
        shares = {f"{radius:g}": (right & (group["radius"] >= radius)).mean() for radius in radii}
        rows.append({"sigma": sigma, "n": len(group), "samples": group["samples"].iloc[0], **shares})
    return pd.DataFrame(rows)


@lru_cache(maxsize=1)
def _opened(path: Path, shards: Path) -> DefendedRun:
    return DefendedRun(path, shards=shards)


@cache
def _parts(path: Path, shards: Path, hospital_id: str) -> HospitalParts:
    return _opened(path, shards).hospital(hospital_id)


@lru_cache(maxsize=128)
def _defended(path: Path, shards: Path, hospital_id: str, defence: str) -> DefendedClassifier:
    return _parts(path, shards, hospital_id).defended(defence)


def attack_scans(path: Path, shards: Path, task: Task, plan: Plan) -> list[dict[str, object]]:
    """Attack one hospital's scans and judge the answers; one row a scan."""
    run, parts = _opened(path, shards), _parts(path, shards, task.hospital_id)
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
    for first in range(0, len(chosen), BATCH):
        these = tuple(chosen[first : first + BATCH].tolist())
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
    run, parts = _opened(path, shards), _parts(path, shards, task.hospital_id)
    after = (run.tested.index(task.hospital_id) + 1) % len(run.tested)
    neighbour = _parts(path, shards, run.tested[after])
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
