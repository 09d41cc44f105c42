"""The benchmark of trust: every defence against every attack on every split over seeds, in cheap cells, all cores busy.

What :mod:`fedplatform.experiments.comparison` is for one setting on a cluster, this is for a table of thousands of
cells on one machine: no run folder and no tracking a cell, a small network, few scans, one process a core.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from scipy import stats

from fedplatform.core.compute import one_thread
from fedplatform.core.files import claim, write_whole
from fedplatform.core.messages import NAN, Aggregate, Evidence, HospitalRecord, HospitalState, RoundReport
from fedplatform.core.specification import nearest
from fedplatform.core.vectors import combine
from fedplatform.core.workers import as_they_finish, workers
from fedplatform.data.error import DataError
from fedplatform.data.partition import PARTITIONS, Partition
from fedplatform.data.shards import Manifest
from fedplatform.data.splits import Role
from fedplatform.experiments.baselines import CENTRAL, NEAREST_NEIGHBOUR, nearest_neighbour
from fedplatform.experiments.engine import ServerRole, in_process_cohort
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.report import comparison_markdown
from fedplatform.experiments.rule_text import parse_rule
from fedplatform.experiments.run import partition_data
from fedplatform.federated.aggregation import Aggregator

COMMON: Mapping[str, object] = {"model": "small_cnn(width=8)", "algorithm": "fedbn_p", "learning_rate": 0.05}
# Beside each: CPU seconds of a cell under the plain mean without an attack, on one core of a two-core server.
DATASETS: Mapping[str, Mapping[str, object]] = {
    "mnist": {"size": 28, "scans": 3500, "rounds": 10, "batch_size": 32},  # 8 s
    "br35h": {"size": 64, "scans": 0, "rounds": 12, "batch_size": 16},  # 27 s
    "alzheimer": {"size": 64, "scans": 4500, "rounds": 10, "batch_size": 32},  # 30 s
    "lc25000": {"size": 64, "scans": 2500, "rounds": 12, "batch_size": 16},  # 29 s
    "lesions": {"size": 64, "scans": 0, "rounds": 12, "batch_size": 8, "local_epochs": 2},  # 28 s
    "cifar10": {"size": 32, "scans": 5000, "rounds": 15, "batch_size": 32},  # 20 s
}

HONEST_ONLY = "honest_only"
REFERENCES = (NEAREST_NEIGHBOUR, CENTRAL, HONEST_ONLY)
OURS = "trust"
RULES = (
    "mean",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "bulyan",
    "geometric_median",
    "centered_clipping",
    "fltrust",
    "dnc",
    "signguard",
    "flame",
    "nnm+median",
    "nnm+trimmed_mean",
    "nnm+multi_krum",
    "nnm+geometric_median",
    "nnm+centered_clipping",
    OURS,
    "network+trust",
    "policy+trust",
    "hybrid+trust",
)
ATTACKS = (
    "none",
    "scaling",
    "partial_scaling",
    "sign_flip",
    "gaussian_noise",
    "label_flip",
    "alie",
    "min_max",
    "min_sum",
    "ipm",
    "mimic",
    "fingerprint_aware",
    "sleeper",
)
SPLITS = ("iid", "dirichlet_0.1")
SEEDS = (0, 1, 2)

WARM_UP = 3  # rounds in which a rule that learns whom to trust is not yet held to its verdicts

SETTING = ["dataset", "split", "hospitals", "byzantine", "rounds"]
CELL = ["dataset", "split", "rule", "attack", "hospitals", "byzantine", "rounds", "seed"]
FIGURES = [
    "accuracy",
    "macro_f1",
    "auc",
    "worst_hospital_accuracy",
    "rarest_hospital_accuracy",
    "detection_f1",
    "detection_precision",
    "detection_recall",
    "false_alarm_rate",
    "seconds",
    "aggregate_seconds",
    "train_seconds",
]
PUBLISHED = [*CELL, "accuracy", "macro_f1", "detection_f1", "false_alarm_rate", "seconds"]
DONE, INFEASIBLE, FAILED = "done", "infeasible", "failed"


@dataclass(frozen=True)
class Cell:
    """One rule against one attack on one split with one seed; ``settings`` are all others of the experiment."""

    dataset: str
    split: str
    rule: str
    attack: str
    seed: int
    settings: Mapping[str, object] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """How a person, and a file, call the cell."""
        return f"{self.split}, {self.rule} against {self.attack}, seed {self.seed}"

    def without_rule(self) -> Experiment:
        """The experiment under the plain mean. Raises :class:`ExperimentError` where it is infeasible."""
        return Experiment.from_settings(
            {**self.settings, "rule": "mean", "attack": self.attack, "seed": self.seed}
            | {"partition": partition_of(self.split)}
        )

    def experiment(self) -> Experiment:
        """What is run; the rule has never seen the attack. Raises ValueError where rule or attack is infeasible.

        ``trust@3`` is the rule ``trust`` over groups of 3, by secure aggregation.
        """
        experiment = self.without_rule()
        name, _, size = self.rule.partition("@")
        rule = parse_rule(name, f=experiment.f).without(experiment.attack_slug)
        return experiment.replace(rule=rule, privacy=f"grouped(size={size})" if size else "none")

    def central(self) -> Experiment:
        """The same network with the same budget on all scans in one place."""
        return self.without_rule().replace(hospitals=1, byzantine=0, f=0, quorum=1, partition="iid")

    def honest_only(self) -> Experiment:
        """The mean under a server that knows who lies and leaves them out: their scans are lost, and no more."""
        experiment = self.without_rule()
        return experiment.replace(rule=HonestMean(experiment.adversary().hospital_ids))

    def key(self) -> dict[str, object]:
        """The columns that tell cells apart."""
        return {name: getattr(self, name, self.settings.get(name)) for name in CELL}


@dataclass(frozen=True)
class HonestMean(Aggregator):
    """The mean of all but ``attackers``: no rule, for no server knows them, but what the best judge could reach."""

    byzantine: tuple[str, ...]

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        hostile = np.array([name in self.byzantine for name in evidence.hospital_ids])
        weights = ~hostile / max((~hostile).sum(), 1)
        return Aggregate(combine(weights, deltas), weights, hostile)


@dataclass(frozen=True)
class Benchmark:
    """Which cells to fill: every rule against every attack, on every split, for every seed.

    ``settings`` are those of an :class:`Experiment`, the same for every rule: optimiser, rounds, root set, attackers.
    Rules, attacks and splits are names as on the command line. Three references come first on each split and seed: the
    nearest neighbour by raw pixels, the same network trained centrally, and the mean of the honest hospitals alone.
    """

    dataset: str
    settings: Mapping[str, object]
    rules: tuple[str, ...] = RULES
    attacks: tuple[str, ...] = ATTACKS
    splits: tuple[str, ...] = SPLITS
    seeds: tuple[int, ...] = SEEDS

    @staticmethod
    def settings_of(dataset: str, changes: Mapping[str, object]) -> dict[str, object]:
        """The resolved settings of a data set by name, some of them changed; rule, attack, split and seed left out.

        Raises :class:`ExperimentError` where they are infeasible.
        """
        given = {"data": dataset, "rule": "mean", **COMMON, **DATASETS[dataset], **changes}
        open_ones = ("rule", "attack", "partition", "seed")
        resolved = Experiment.from_settings(given).settings()
        return {name: value for name, value in resolved.items() if name not in open_ones}

    def cells(self) -> list[Cell]:
        """All cells in order: a table that is cut off after any of them is a smaller table, and not a torn one."""
        attacks = sorted(self.attacks, key=lambda attack: attack != "none")
        pairs = [(reference, "none") for reference in REFERENCES]
        pairs += [(rule, attack) for attack in attacks for rule in self.rules]
        return [
            Cell(self.dataset, split, rule, attack, seed, self.settings)
            for seed, split, (rule, attack) in itertools.product(self.seeds, self.splits, pairs)
        ]


def partition_of(split: str) -> Partition:
    """A partition by its short name: ``iid``, ``dirichlet_0.5``, ``label_skew_0.9``, ``quantity_skew_1``, ``site``."""
    kind, _, value = (split, "", "") if split in PARTITIONS else split.rpartition("_")
    try:
        return PARTITIONS[kind](*[float(value)] if value else [])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        known = ("iid", "dirichlet_0.5", "label_skew_0.9", "quantity_skew_1", "site")
        raise ExperimentError(f"unknown split {split!r}{nearest(split, known)}; known: {', '.join(known)}") from error


@dataclass(frozen=True)
class Filled:
    """A cell with its figures, or the reason why there are none, and what became of every hospital in every round."""

    cell: Cell
    status: str
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    hospitals: tuple[HospitalRecord, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        figures = f"accuracy {self.figures['accuracy']:.3f}" if self.figures else f"{self.status}, {self.reason}"
        return f"{self.cell.name}: {figures}"

    def row(self) -> dict[str, object]:
        """The row of ``trust.parquet``."""
        return {**self.cell.key(), "status": self.status, "reason": self.reason, **dict.fromkeys(FIGURES, NAN)} | dict(
            self.figures
        )


def fill_cell(cell: Cell, shards: Path, scratch: Path) -> Filled:
    """Run one cell in this process on shards that are written; an error is an answer, too."""
    try:
        if cell.rule == NEAREST_NEIGHBOUR:
            found = nearest_neighbour(shards)
            return Filled(
                cell, DONE, figures={"accuracy": found.accuracy, "macro_f1": found.macro_f1, "auc": found.auc}
            )
        try:
            experiment = {CENTRAL: cell.central, HONEST_ONLY: cell.honest_only}.get(cell.rule, cell.experiment)()
        except ValueError as error:
            return Filled(cell, INFEASIBLE, in_one_line(error))
        reports = _play(experiment, shards, scratch)
        figures = _figures(reports, Manifest.load(shards), patience=getattr(experiment.attack, "patience", 0))
        return Filled(
            cell, DONE, figures=figures, hospitals=tuple(record for report in reports for record in report.hospitals)
        )
    except Exception as error:  # whatever it was, the other cells go on
        return Filled(cell, FAILED, f"{type(error).__name__}: {in_one_line(error)}")


def _play(experiment: Experiment, shards: Path, scratch: Path) -> list[RoundReport]:
    with one_thread(), tempfile.TemporaryDirectory(dir=scratch) as state:
        cohort = in_process_cohort(experiment, shards, state_folder=Path(state))
        return list(ServerRole(experiment, shards, cohort).reports())


def _figures(reports: Sequence[RoundReport], manifest: Manifest, *, patience: int) -> dict[str, float]:
    last = reports[-1]
    own = np.array([NAN if record.is_byzantine else record.accuracy for record in last.hospitals])
    graded = np.flatnonzero(np.isfinite(own))
    counts = np.array([shard.counts[Role.TRAIN] for shard in manifest.hospitals])
    train, aggregate, evaluate = (
        sum(getattr(report, f"{phase}_seconds") for report in reports) for phase in ("train", "aggregate", "evaluate")
    )
    return {
        "accuracy": last.accuracy,
        "macro_f1": last.macro_f1,
        "auc": last.auc,
        "worst_hospital_accuracy": float(own[graded].min()),
        "rarest_hospital_accuracy": float(own[graded[rarity(counts)[graded].argmax()]]),
        **detection([record for report in reports for record in report.hospitals], patience=patience),
        "seconds": train + aggregate + evaluate,
        "aggregate_seconds": aggregate,
        "train_seconds": train,
    }


def rarity(counts: np.ndarray) -> np.ndarray:
    """Total variation between each hospital's mix of classes and everybody's: counts (n, classes) to (n,), 0 to 1."""
    own = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.asarray(np.abs(own - counts.sum(axis=0) / counts.sum()).sum(axis=1) / 2)


def detection(records: Iterable[HospitalRecord], *, patience: int) -> dict[str, float]:
    """How well the hostile ones were told: F1, precision, recall and the share of honest ones called hostile.

    What is counted are hospitals in rounds, after the first three. An attacker lies in the rounds after its
    ``patience`` and is honest until then. NaN where there is nothing to divide by: without a lie there is no F1.
    """
    judged = [record for record in records if record.round_number > WARM_UP]
    flagged = np.array([record.state is HospitalState.HOSTILE for record in judged], bool)
    byzantine = np.array([record.is_byzantine and record.round_number > patience for record in judged], bool)
    hits, false_alarms, missed = (flagged & byzantine).sum(), (flagged & ~byzantine).sum(), (~flagged & byzantine).sum()

    def share(part: int, whole: int) -> float:
        return float(part / whole) if whole else NAN

    return {
        "detection_f1": share(2 * hits, 2 * hits + false_alarms + missed) if byzantine.any() else NAN,
        "detection_precision": share(hits, hits + false_alarms) if byzantine.any() else NAN,
        "detection_recall": share(hits, hits + missed),
        "false_alarm_rate": share(false_alarms, (~byzantine).sum()),
    }


@dataclass(frozen=True)
class Progress:
    """Where a benchmark stands: ``last`` was just finished (None at the start), ``running`` is the oldest under way."""

    done: int
    total: int
    seconds_left: float
    last: Filled | None = None
    running: str = ""


Observer = Callable[[Progress], None]


class Results:
    """All cells that were tried: ``trust.parquet``, ``trust.csv`` and ``hospitals/``, each file whole at any moment.

    Rows stand in the order of ``cells``, whichever was finished first; those that only earlier calls asked for follow.
    """

    def __init__(self, folder: Path, cells: Sequence[Cell]) -> None:
        self._folder = folder
        self._rows: dict[tuple[object, ...], Mapping[Any, Any] | None] = dict.fromkeys(
            self._place(cell.key()) for cell in cells
        )
        found = folder / "trust.parquet"
        if found.exists():
            self._rows |= {self._place(row): row for row in pd.read_parquet(found).to_dict("records")}

    @property
    def frame(self) -> pd.DataFrame:
        """One row a cell."""
        tried = [row for row in self._rows.values() if row is not None]
        frame = pd.DataFrame(tried, columns=[*CELL, "status", "reason", *FIGURES])
        return frame.astype(dict.fromkeys(FIGURES, "float64"))

    def has(self, cell: Cell) -> bool:
        """Whether this cell has its figures."""
        row = self._rows.get(self._place(cell.key()))
        return row is not None and row["status"] == DONE

    def add(self, filled: Filled) -> None:
        """Keep a cell, in place of an earlier trial of the same."""
        if filled.hospitals:
            records = pd.DataFrame([{**filled.cell.key(), **asdict(record)} for record in filled.hospitals])
            records["state"] = records["state"].astype(str)
            place = self._folder / "hospitals" / f"{quote(filled.cell.name, safe=' ,+()=')}.parquet"
            write_whole(place, lambda path: records.to_parquet(path, index=False))
        self._rows[self._place(filled.cell.key())] = filled.row()
        frame = self.frame
        write_whole(self._folder / "trust.parquet", lambda path: frame.to_parquet(path, index=False))
        write_whole(self._folder / "trust.csv", lambda path: frame[PUBLISHED].round(4).to_csv(path, index=False))

    def median_seconds(self) -> float:
        """What a finished cell took; NaN before the first."""
        return float(self.frame["seconds"].median())

    @staticmethod
    def _place(row: Mapping[Any, object]) -> tuple[object, ...]:
        return tuple(row[name] for name in CELL)


def fill(
    benchmark: Benchmark,
    *,
    folder: Path,
    jobs: int,
    data_folder: Path | None = None,
    observer: Observer = lambda _: None,
) -> pd.DataFrame:
    """Fill the table cell by cell in ``jobs`` processes, and return it; a second call goes on where the first stopped.

    A cell that cannot be run, or fails, becomes a row that says so, and is tried again by the next call. Raises
    :class:`ExperimentError` where the folder holds another benchmark, DataError where the data set is not there.
    """
    for split in benchmark.splits:
        partition_of(split)
    cells = benchmark.cells()
    cells[0].without_rule().open_data(data_folder)
    claim(folder, benchmark.settings, what="benchmark", before=Experiment.defaults())
    results = Results(folder, cells)
    left = [cell for cell in cells if not results.has(cell)]
    done = len(cells) - len(left)
    under_way: list[str] = []

    def tell(last: Filled | None = None) -> None:
        running = next(iter(under_way), "")
        seconds = results.median_seconds() * (len(cells) - done) / jobs
        observer(Progress(done, len(cells), seconds, last, running))

    def keep(filled: Filled) -> None:
        nonlocal done
        results.add(filled)
        done += 1
        tell(filled)

    def with_shards() -> Iterator[tuple[Cell, Path]]:
        for cell in left:
            try:
                shards = _shards(cell, folder / "shards", data_folder)
            except DataError as error:  # too few groups for this many hospitals, sites that are not there
                keep(Filled(cell, INFEASIBLE, in_one_line(error)))
            else:
                yield cell, shards

    with tempfile.TemporaryDirectory(prefix="fedplatform-") as scratch, workers(jobs) as pool:

        def submit(task: tuple[Cell, Path]) -> Future[Filled]:
            cell, shards = task
            future = pool.submit(fill_cell, cell, shards, Path(scratch))
            under_way.append(cell.name)
            tell()
            return future

        for (cell, _), filled in as_they_finish(with_shards(), submit, jobs=jobs):
            under_way.remove(cell.name)
            keep(filled)
    return results.frame


def _shards(cell: Cell, folder: Path, data_folder: Path | None) -> Path:
    """The shards that all cells of a split and seed share, written if they are not there."""
    central = cell.rule == CENTRAL
    shards = folder / f"{CENTRAL if central else cell.split}-seed{cell.seed}"
    if not shards.exists():
        plain = replace(cell, attack="none")
        partition_data(plain.central() if central else plain.without_rule(), shards, data_folder=data_folder)
    return shards


def in_one_line(error: BaseException) -> str:
    """An error's words without line breaks."""
    return " ".join(str(error).split())


def worst_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The attack under which each rule does worst, by mean accuracy over seeds; one row a setting and rule.

    Columns: those of the setting, rule, attack, accuracy. References are no defence and are left out.
    """
    keys = [*SETTING, "rule"]
    means = _defences(frame).groupby([*keys, "attack"], sort=False)["accuracy"].mean().reset_index()
    return means.loc[means.groupby(keys, sort=False)["accuracy"].idxmin()].reset_index(drop=True)


def paired_against(frame: pd.DataFrame, rule: str) -> pd.DataFrame:
    """How much better ``rule`` is than each other one where each does worst: paired by seed, Student's t.

    A seed's value is the lowest accuracy over all attacks; only seeds in which both rules met every attack count.
    Columns: those of the setting, rule (the other), difference (mean of ``rule`` minus other), half_width (of its 95 %
    interval), p (two-sided), seeds. One seed has no interval and no p, both are NaN then.
    """
    rows = []
    for setting, group in _defences(frame).groupby(SETTING, sort=False):
        table = group.pivot(index="seed", columns=["rule", "attack"], values="accuracy")
        attacks = group["attack"].unique()
        rules = group["rule"].unique()

        def worst(name: str, table: pd.DataFrame = table, attacks: np.ndarray = attacks) -> pd.Series[float]:
            return table.reindex(columns=[(name, attack) for attack in attacks]).min(axis=1, skipna=False)

        for other in rules if rule in rules else []:
            if other != rule:
                differences = (worst(rule) - worst(other)).dropna().to_numpy(np.float64)
                figures = dict(zip(("difference", "half_width", "p"), _paired_t(differences), strict=True))
                rows.append(
                    dict(zip(SETTING, setting, strict=True)) | {"rule": other, **figures, "seeds": len(differences)}
                )
    return pd.DataFrame(rows, columns=[*SETTING, "rule", "difference", "half_width", "p", "seeds"])


def _paired_t(differences: np.ndarray) -> tuple[float, float, float]:
    """Mean, half-width of the 95 % interval, and two-sided p of differences (n,)."""
    n = len(differences)
    if n < 2:
        return float(differences.mean()) if n else NAN, NAN, NAN
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(n)
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # no spread: p is 0, or NaN where there is no difference at all
        p = 2 * stats.t.sf(np.abs(mean / error), n - 1)
    return float(mean), float(stats.t.ppf(0.975, n - 1) * error), float(p)


def markdown(frame: pd.DataFrame) -> str:
    """The tables for people: accuracy of rules against attacks, what is missing and why, and the paired comparison."""
    parts = []
    done = frame[frame["status"] == DONE]
    if len(done):
        parts.append(comparison_markdown(done).rstrip())
    missing = frame[frame["status"] != DONE]
    if len(missing):
        lines = ["Missing:", ""]
        for (status, reason, rule), rows in missing.groupby(["status", "reason", "rule"], sort=False):
            attacks = ", ".join(rows["attack"].unique())
            lines.append(f"- {rule} against {attacks} ({len(rows)} cells): {status}, {reason}")
        parts.append("\n".join(lines))
    pairs = paired_against(frame, OURS)
    if len(pairs):
        parts.append(_paired_markdown(pairs))
    return "\n\n".join(parts) + "\n"


def _paired_markdown(pairs: pd.DataFrame) -> str:
    def points(share: float, pattern: str) -> str:
        return "–" if np.isnan(share) else pattern.format(100 * share)

    tables = []
    for (dataset, split), rows in pairs.groupby(["dataset", "split"], sort=False):
        lines = [
            f"{dataset}, {split}: {OURS} minus the other, accuracy under the worst attack of each, percentage points",
            "",
            f"| against | {OURS} is better by | 95 % interval | p (paired t) | seeds |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for row in rows.to_dict("records"):
            p = "–" if np.isnan(row["p"]) else f"{row['p']:.3f}"
            better, half_width = points(row["difference"], "{:+.1f}"), points(row["half_width"], "± {:.1f}")
            lines.append(f"| {row['rule']} | {better} | {half_width} | {p} | {row['seeds']} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _defences(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["status"] == DONE) & ~frame["rule"].isin(REFERENCES)]
