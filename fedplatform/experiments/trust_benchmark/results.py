"""The figures of all cells on disk, and what became of every hospital."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from fedplatform.core.files import write_whole
from fedplatform.experiments.trust_benchmark.cells import CELL, Cell
from fedplatform.experiments.trust_benchmark.figures import DONE, FIGURES, Filled

PUBLISHED = [*CELL, "accuracy", "macro_f1", "attack_success", "detection_f1", "false_alarm_rate", "seconds"]


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
