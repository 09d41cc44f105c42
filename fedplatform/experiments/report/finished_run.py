"""What a run folder says once its run is over."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from fedplatform.core.messages import HospitalRecord, HospitalState, Predictions, RoundReport
from fedplatform.core.rounds import PREDICTIONS, TableError, predictions_of, reports_of
from fedplatform.core.withdrawal import Withdrawal, read_withdrawals
from fedplatform.data.error import DataError
from fedplatform.data.shards import Manifest
from fedplatform.experiments.cross_site_table import read_cross_site
from fedplatform.experiments.report.error import ReportError
from fedplatform.experiments.weights import START, start_card


@dataclass(frozen=True, eq=False)
class Samples:
    """A few of the server's own root scans and what the trained model says of them.

    ``images`` (m, c, h, w) uint8 with c = 1 or 3, ``labels`` (m,) or (m, num_classes), ``probabilities``
    (m, num_classes).
    """

    images: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class HospitalHistory:
    """Every round of one hospital, oldest first."""

    hospital_id: str
    records: tuple[HospitalRecord, ...]

    @property
    def is_byzantine(self) -> bool:
        """Whether it lied in any round."""
        return any(record.is_byzantine for record in self.records)

    @property
    def states(self) -> Counter[HospitalState]:
        """How many rounds it spent in each state."""
        return Counter(record.state for record in self.records)

    @property
    def shut_out(self) -> bool:
        """Whether the rule refused more than half of the well-formed updates it sent."""
        used = self.states[HospitalState.REPORTED] + self.states[HospitalState.UNJUDGED]
        return self.states[HospitalState.HOSTILE] > used

    @property
    def last(self) -> HospitalRecord:
        """Its newest round."""
        return self.records[-1]

    @property
    def mean_norm(self) -> float:
        """Over the rounds in which an update arrived; NaN where none did."""
        return _mean(record.norm for record in self.records)

    @property
    def mean_cosine(self) -> float:
        """Over the rounds in which an update arrived; NaN where none did."""
        return _mean(record.cosine for record in self.records)


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """What a run folder says: its settings as text, its rounds, and the server's sample scans if it kept any.

    ``weights`` says in one line what it started from; empty where that was random. ``tests`` is what its last model
    says of the hospitals' test scans, by hospital; ``cross_site`` is of :func:`read_cross_site`, ``withdrawals`` who
    has left. ``classes`` are the names of the classes, empty where nothing in the folder tells them.
    """

    name: str
    settings: dict[str, str]
    rounds: tuple[RoundReport, ...]
    samples: Samples | None
    weights: str = ""
    tests: tuple[Predictions, ...] = ()
    cross_site: pd.DataFrame | None = None
    withdrawals: tuple[Withdrawal, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def hospitals(self) -> tuple[HospitalHistory, ...]:
        """Honest hospitals first, then attackers, each in the order in which the run lists them."""
        records: dict[str, list[HospitalRecord]] = {}
        for report in self.rounds:
            for record in report.hospitals:
                records.setdefault(record.hospital_id, []).append(record)
        histories = [HospitalHistory(hospital_id, tuple(own)) for hospital_id, own in records.items()]
        return tuple(sorted(histories, key=lambda history: history.is_byzantine))


def read_run(folder: Path) -> FinishedRun:
    """Read a run folder; raises :class:`ReportError` where it holds no finished run."""
    needed = [folder / name for name in ("experiment.yaml", "rounds.parquet", "hospitals.parquet")]
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        raise ReportError(
            f"a run folder holds experiment.yaml, rounds.parquet and hospitals.parquet, "
            f"{folder} lacks {', '.join(missing)}"
        )
    settings = _settings(needed[0])
    try:
        rounds = reports_of(*(_table(path) for path in needed[1:]))
    except TableError as error:
        raise ReportError(f"{folder}/{error}") from error
    if not rounds or not all(report.hospitals for report in rounds):
        raise ReportError(f"a run folder holds at least one round and every round a hospital, {folder} does not")
    path = folder / "samples.npz"
    samples = _samples(path) if path.is_file() else None
    return FinishedRun(
        name=settings.get("name", folder.resolve().name),
        settings=settings,
        rounds=rounds,
        samples=samples,
        weights=start_card(folder / START)["words"] if (folder / START).is_file() else "",
        tests=_tests(folder / PREDICTIONS, round_number=rounds[-1].round_number),
        cross_site=read_cross_site(folder, round_number=rounds[-1].round_number),
        withdrawals=read_withdrawals(folder),
        classes=samples.classes if samples else _dealt_classes(folder / "shards"),
    )


def _dealt_classes(shards: Path) -> tuple[str, ...]:
    """The classes of the scans that were dealt, where the run still has them."""
    try:
        return Manifest.load(shards).classes
    except DataError:
        return ()


def _tests(path: Path, *, round_number: int) -> tuple[Predictions, ...]:
    return predictions_of(_table(path), round_number=round_number) if path.is_file() else ()


def _settings(path: Path) -> dict[str, str]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ReportError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ReportError(f"{path} is a mapping of settings, got {type(settings).__name__}")
    return {str(key): _plain(value) for key, value in settings.items()}


def _plain(value: object) -> str:
    if isinstance(value, dict | list):
        return yaml.safe_dump(value, default_flow_style=True, width=math.inf).strip()
    return "" if value is None else str(value)


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ReportError(f"{path} is no readable Parquet file: {' '.join(str(error).split())}") from error


def _samples(path: Path) -> Samples:
    try:
        with np.load(path) as file:
            samples = Samples(
                file["images"], file["labels"], file["probabilities"], tuple(map(str, file["classes"].tolist()))
            )
    except (OSError, ValueError, KeyError) as error:
        raise ReportError(f"{path} holds images, labels, probabilities and classes, got: {error}") from error
    if samples.images.ndim != 4 or samples.images.dtype != np.uint8 or samples.images.shape[1] not in (1, 3):
        raise ReportError(
            f"{path}: images are uint8 (m, 1 or 3, h, w), got {samples.images.dtype} {samples.images.shape}"
        )
    return samples


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
