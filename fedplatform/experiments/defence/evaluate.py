"""The evaluation of a run's defence: every row of the table against every tier, scan by scan, resumable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from fedplatform.core.files import alone_in, claim
from fedplatform.core.workers import as_they_finish, workers
from fedplatform.experiments.defence.attack import FRESH_DRAWS, Place, attack_scans, computing_on
from fedplatform.experiments.defence.cells import Results
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.experiments.defence.plan import Plan, Task, tasks_of
from fedplatform.experiments.experiment import ExperimentError


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
    device: str = "auto",
    observer: Observer = lambda _: None,
) -> pd.DataFrame:
    """Attack the defence of the run in ``path`` and leave ``scans.parquet`` and ``evaluation.parquet`` there.

    A task that is done is not done again. Returns one row a cell. Raises :class:`ExperimentError` where the run has no
    defence, was evaluated with another budget or other networks, or is being evaluated by another process, and
    :class:`ComputeError` where there is no such ``device``.
    """
    compute = computing_on(device)
    run = DefendedRun(path, shards=shards)
    place = Place(path, run.shards, compute)
    budget = {
        **asdict(plan.budget),
        "scans": plan.scans,
        "hard_scans": plan.hard_scans,
        "fresh_draws": FRESH_DRAWS,
        "networks": run.digest,
    }
    tasks = tasks_of(plan, run.tested)
    if not tasks:
        raise ExperimentError(f"no tier of {', '.join(plan.tiers)} can be tried on {', '.join(plan.defences)}")
    # Two at once would each write its own table over the other's.
    with alone_in(path, what=f"an evaluation of {path.name}"), workers(jobs) as pool:
        _require_same_networks(path, budget["networks"])
        claim(path, budget, what="evaluation")
        results = Results(path, run)
        left = [task for task in tasks if not results.has(task)]
        done = len(tasks) - len(left)
        observer(Progress(done, len(tasks)))
        try:
            for task, rows in as_they_finish(
                left, lambda task: pool.submit(attack_scans, place, task, plan), jobs=jobs
            ):
                results.add(rows)
                done += 1
                accuracy = float(np.mean([row["answer"] == row["label"] for row in rows])) if rows else float("nan")
                observer(Progress(done, len(tasks), task, accuracy))
        finally:
            cells = results.summarise()
    return cells


def _require_same_networks(path: Path, digest: object) -> None:
    file = path / "evaluation.yaml"
    if file.exists() and yaml.safe_load(file.read_text()).get("networks") != digest:
        raise ExperimentError(
            f"{path} was trained anew since its evaluation was begun; remove {file} and {path / 'scans.parquet'} "
            "to attack what is there now"
        )
