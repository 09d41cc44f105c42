"""What ``fedplatform evaluate`` leaves in a run folder."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from fedplatform.experiments.report.error import ReportError
from fedplatform.experiments.report.threat_wording import TIERS, is_named_attack

KEYS = ("defence", "adversarial_training", "tier", "epsilon", "seed")
SETTING = ("dataset", "pixels", "split")
SHARES = ("accuracy", "accuracy_mean", "accuracy_worst", "wrong", "flagged", "abstained", "auc", "tpr_at_5")
CELL_COLUMNS = (*SETTING, *KEYS, "n", "effective", *SHARES, "evaluations", "milliseconds")
SCAN_COLUMNS = (*KEYS, "score", "flagged", "depth")
FILE = "evaluation.parquet"


@dataclass(frozen=True, eq=False)
class Pictures:
    """A few scans on their way through attack and defence.

    ``clean``, ``attacked`` and ``purified`` (m, c, h, w) in [0, 1] with c = 1 or 3; ``anomaly`` (m, h, w) the
    detector's errors; ``labels``, answers, ``flagged``, ``scores``, ``thresholds`` and ``depths`` (m,).
    """

    clean: np.ndarray
    attacked: np.ndarray
    purified: np.ndarray
    anomaly: np.ndarray
    labels: np.ndarray
    answers_undefended: np.ndarray
    answers_defended: np.ndarray
    flagged: np.ndarray
    scores: np.ndarray
    thresholds: np.ndarray
    depths: np.ndarray
    epsilon: float
    tier: str
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class FinishedEvaluation:
    """One row a cell, one row a scan and cell, the attackers' budget, and pictures if any were kept."""

    cells: pd.DataFrame
    scans: pd.DataFrame
    budget: dict[str, str]
    pictures: Pictures | None


def read_evaluation(folder: Path) -> FinishedEvaluation:
    """Read a run folder; raises :class:`ReportError` where it holds no evaluation, or one that would mislead."""
    names = (FILE, "scans.parquet", "evaluation.yaml")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ReportError(f"an evaluated run folder holds {', '.join(names)}, {folder} lacks {', '.join(missing)}")
    cells = checked_cells(_table(folder / FILE))
    settings = cells[list(SETTING)].drop_duplicates()
    if len(settings) > 1:
        raise ReportError(f"a run is evaluated on one data set at one size and split, {folder / FILE} holds several")
    scans = _table(folder / "scans.parquet")
    _need(scans, SCAN_COLUMNS, "scans.parquet")
    path = folder / "pictures.npz"
    return FinishedEvaluation(
        cells=cells,
        scans=scans.assign(epsilon=scans["epsilon"].round(6)),
        budget=_budget(folder / "evaluation.yaml"),
        pictures=_pictures(path) if path.is_file() else None,
    )


def checked_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The same cells; raises :class:`ReportError` where a table of them would mislead."""
    _need(frame, CELL_COLUMNS, "an evaluation")
    if frame.empty:
        raise ReportError("an evaluation holds at least one cell, got none")
    unknown = sorted(tier for tier in set(frame["tier"]) - set(TIERS) if not is_named_attack(tier))
    if unknown:
        raise ReportError(f"a tier is one of {', '.join(TIERS)}, got {', '.join(map(str, unknown))}")
    for name in SHARES:
        unknown_is_fine = name != "accuracy"
        wrong = frame[~(frame[name].between(0, 1) | (frame[name].isna() & unknown_is_fine))]
        if len(wrong):
            raise ReportError(f"{name} is a share in [0, 1], got {wrong[name].iloc[0]} in row {wrong.index[0]}")
    if (frame["n"] < 1).any():
        raise ReportError("a cell is measured on at least one scan, got n = 0")
    frame = frame.assign(epsilon=frame["epsilon"].round(6))
    twice = frame[frame.duplicated([*SETTING, *KEYS])]
    if len(twice):
        cell = ", ".join(f"{name} {twice[name].iloc[0]}" for name in KEYS)
        raise ReportError(f"an evaluation counts every cell once, got two rows for {cell}")
    return frame


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ReportError(f"{path} is no readable Parquet file: {' '.join(str(error).split())}") from error


def _need(frame: pd.DataFrame, columns: tuple[str, ...], what: str) -> None:
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ReportError(f"{what} needs the columns {', '.join(columns)}, got no {', '.join(missing)}")


def _budget(path: Path) -> dict[str, str]:
    try:
        budget = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ReportError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(budget, dict):
        raise ReportError(f"{path} is a mapping of settings, got {type(budget).__name__}")
    return {
        str(key): ", ".join(map(str, value)) if isinstance(value, list) else str(value) for key, value in budget.items()
    }


def _pictures(path: Path) -> Pictures:
    try:
        with path.open("rb") as stream, np.load(stream) as file:  # numpy leaves a broken file open
            kept = {name: file[name] for name in Pictures.__dataclass_fields__}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ReportError(f"{path} holds {', '.join(Pictures.__dataclass_fields__)}, got: {error}") from error
    shape = kept["clean"].shape
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ReportError(f"{path}: scans are (m, 1 or 3, h, w), got {shape}")
    wanted = dict.fromkeys(("attacked", "purified"), shape) | {"anomaly": (shape[0], *shape[2:])}
    wanted |= dict.fromkeys(("labels", "answers_undefended", "answers_defended"), shape[:1])
    wanted |= dict.fromkeys(("flagged", "scores", "thresholds", "depths"), shape[:1])
    for name, due in wanted.items():
        if kept[name].shape != due:
            raise ReportError(f"{path}: {name} belongs to clean {shape}, so it is {due}, got {kept[name].shape}")
    classes = tuple(map(str, kept.pop("classes").tolist()))
    named = np.concatenate([kept[name] for name in ("labels", "answers_undefended", "answers_defended")])
    if len(named) and not (named.min() >= 0 and named.max() < len(classes)):
        raise ReportError(f"{path} names {len(classes)} classes, got an answer or label {named.max()}")
    epsilon, tier = float(kept.pop("epsilon")), str(kept.pop("tier"))
    return Pictures(**kept, classes=classes, epsilon=epsilon, tier=tier)
