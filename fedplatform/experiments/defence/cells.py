"""What the attacked scans of an evaluation amount to: a row a scan, a row a cell, both files whole at any moment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from fedplatform.core.files import write_whole
from fedplatform.core.statistics import effective_size
from fedplatform.defence.presets import DEFENCES
from fedplatform.defence.threats import TIERS
from fedplatform.experiments.baselines import NEAREST_NEIGHBOUR
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.experiments.defence.plan import Task

SHARE_OF_TABLES = 0.05  # of the time of an evaluation, for showing how far it has come
ORDER = {name: number for number, name in enumerate((*TIERS, NEAREST_NEIGHBOUR, *DEFENCES))}
KEYS = ["defence", "adversarial_training", "tier", "epsilon", "seed"]


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


def _place_of(value: object) -> object:
    """Where a value of a column stands: tiers and defences in their own order, before any other name."""
    return f"{ORDER.get(value, len(ORDER)):03d} {value}" if isinstance(value, str) else value


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
