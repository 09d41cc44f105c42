"""The benchmark of the defence: train and attack it, with and without adversarial training, over seeds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd

from fedplatform.core.files import claim, write_whole
from fedplatform.core.specification import nearest
from fedplatform.core.workers import as_they_finish, workers
from fedplatform.defence.settings import DefenceSettings
from fedplatform.experiments.defence.evaluate import Observer, evaluate
from fedplatform.experiments.defence.load import DEFENCE, STAGES
from fedplatform.experiments.defence.plan import Plan
from fedplatform.experiments.defence.train import defend
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment, ExperimentError, load_settings
from fedplatform.experiments.report.defence_pairs import defence_pairs
from fedplatform.experiments.run import partition_data, run

RECIPE = "br35h_robust"  # all data sets are trained as it says, each with its own scans
DATASETS: Mapping[str, Mapping[str, object]] = {
    "br35h": {"size": 64},
    "alzheimer": {"size": 64, "scans": 3200},
    "lc25000": {"size": 64, "scans": 3200},
    "lesions": {"size": 64},
}
KINDS: Mapping[str, Mapping[str, object]] = {
    "plain": {"objective": "cross_entropy"},
    "adversarial": {},
}
SHARED_STAGES = ("autoencoder", "purifier")  # they know no classifier, so both kinds have the same
PUBLISHED = [
    "dataset", "pixels", "split", "defence", "adversarial_training", "tier", "epsilon", "seed", "n", "groups",
    "effective", "accuracy", "flagged", "abstained", "evaluations", "milliseconds", "accuracy_mean", "accuracy_worst",
    "wrong", "auc", "tpr_at_5",
]  # fmt: skip


@dataclass(frozen=True)
class DefenceBenchmark:
    """What to train and attack; ``changes`` are settings of the experiment, ``defence`` those of its defence.

    ``kinds`` of training are ``plain`` and ``adversarial``.
    """

    dataset: str
    seeds: tuple[int, ...] = (0, 1, 2)
    kinds: tuple[str, ...] = tuple(KINDS)
    changes: Mapping[str, object] = field(default_factory=dict)
    defence: Mapping[str, object] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise ExperimentError(f"no settings for data set {self.dataset!r}{nearest(self.dataset, DATASETS)}")
        for kind in self.kinds:
            if kind not in KINDS:
                raise ExperimentError(
                    f"no training is called {kind!r}{nearest(kind, KINDS)}; known: {', '.join(KINDS)}"
                )

    def experiment(self, kind: str, seed: int) -> Experiment:
        """The classifier's training, ``plain`` or ``adversarial``."""
        settings = {**load_settings(RECIPE), "data": self.dataset, **DATASETS[self.dataset], **self.changes}
        return Experiment.from_settings({**settings, **KINDS[kind], "seed": seed})

    @property
    def defence_settings(self) -> DefenceSettings:
        """The defence's training."""
        return DefenceSettings.from_settings(self.defence)


def fill(
    benchmark: DefenceBenchmark,
    *,
    folder: Path,
    jobs: int,
    data_folder: Path | None = None,
    announce: Callable[[str], None] = lambda _: None,
    observer: Observer = lambda _: None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train what is not trained yet, a seed a process, then attack; a second call goes on where the first stopped.

    Leaves ``plain-seed0/``, ``adversarial-seed0/``... as run folders, ``defence.csv``, one row a cell, and
    ``pairs.csv``, the full defence beside every other row. Returns one row a cell, and one row a scan.
    """
    claim(
        folder,
        {
            **benchmark.experiment("plain", 0).settings(),
            **benchmark.defence_settings.settings(),
        },
        what="benchmark",
        before={**Experiment.defaults(), **DefenceSettings.defaults()},
    )
    with workers(jobs) as pool:
        for _, said in as_they_finish(
            benchmark.seeds, lambda seed: pool.submit(train, benchmark, seed, folder, data_folder), jobs=jobs
        ):
            announce(said)
    tables, scans = [], []
    for seed in benchmark.seeds:
        for kind in benchmark.kinds:
            path = folder / f"{kind}-seed{seed}"
            announce(f"attacking {path.name}")
            evaluate(path, benchmark.plan, jobs=jobs, shards=folder / f"shards-seed{seed}", observer=observer)
            tables.append(pd.read_parquet(path / "evaluation.parquet"))
            scans.append(pd.read_parquet(path / "scans.parquet"))
            table = pd.concat(tables, ignore_index=True)
            table[PUBLISHED].round(4).to_csv(folder / "defence.csv", index=False)
    seen = pd.concat(scans, ignore_index=True)
    defence_pairs(seen).round(4).to_csv(folder / "pairs.csv", index=False)
    return pd.concat(tables, ignore_index=True), seen


def train(benchmark: DefenceBenchmark, seed: int, folder: Path, data_folder: Path | None) -> str:
    """Train all kinds of one seed with what belongs to them, in this process; says what was done."""
    shards = folder / f"shards-seed{seed}"
    if not shards.exists():
        partition_data(benchmark.experiment("plain", seed), shards, data_folder=data_folder)
    for kind in benchmark.kinds:
        path = folder / f"{kind}-seed{seed}"
        if not (path / "report.html").is_file():
            shutil.rmtree(path, ignore_errors=True)  # a run that was cut off begins anew
            run(benchmark.experiment(kind, seed), engine=InProcessEngine(), runs=folder, name=path.name, shards=shards)
        for other in KINDS:
            _share(folder / f"{other}-seed{seed}", path)
        defend(path, benchmark.defence_settings, engine=InProcessEngine(), shards=shards)
    return f"seed {seed} is trained"


def _share(first: Path, second: Path) -> None:
    """Give the second run the networks that both have in common, where the first has them."""
    for stage in SHARED_STAGES:
        have, want = (path / DEFENCE / STAGES[stage] for path in (first, second))
        if have.is_file() and not want.is_file():
            write_whole(want, partial(shutil.copy, have))
