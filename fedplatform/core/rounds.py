"""What happened in a run as two tables, one row a round and one a hospital and round, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

import pandas as pd
import pyarrow as pa

from fedplatform.core.errors import FedplatformError
from fedplatform.core.messages import HospitalRecord, HospitalState, RoundReport


class TableError(FedplatformError, ValueError):
    """A table lacks a column that its rows need."""


def tables_of(reports: Sequence[RoundReport]) -> dict[str, pa.Table]:
    """The tables by the names of their files, ``rounds.parquet`` and ``hospitals.parquet``."""
    rounds = pd.DataFrame(
        [_row_of_round(report) for report in reports],
        columns=[field.name for field in fields(RoundReport) if field.name != "hospitals"],
    )
    records = [record for report in reports for record in report.hospitals]
    # Column by column, for every round writes all rounds before it, too.
    hospitals = pd.DataFrame(
        {field.name: [getattr(record, field.name) for record in records] for field in fields(HospitalRecord)}
    )
    hospitals["state"] = hospitals["state"].astype(str)
    frames = {"rounds.parquet": rounds, "hospitals.parquet": hospitals}
    return {name: pa.Table.from_pandas(frame, preserve_index=False) for name, frame in frames.items()}


def reports_of(rounds: pa.Table, hospitals: pa.Table) -> tuple[RoundReport, ...]:
    """The reports in the two tables, in the order of the rounds. Raises :class:`TableError`."""
    records = [HospitalRecord(**row) for row in _rows(hospitals, HospitalRecord, file="hospitals.parquet")]
    own = _rows(rounds, RoundReport, file="rounds.parquet", skip=("hospitals",))
    return tuple(
        RoundReport(**row, hospitals=tuple(r for r in records if r.round_number == row["round_number"]))
        for row in sorted(own, key=lambda row: row["round_number"])
    )


def _row_of_round(report: RoundReport) -> dict[str, object]:
    row = {field.name: getattr(report, field.name) for field in fields(report) if field.name != "hospitals"}
    return {**row, "confusion": [list(line) for line in report.confusion]}


def _rows(table: pa.Table, kind: type, *, file: str, skip: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The rows of a table as keyword arguments of a message; a missing number becomes NaN.

    Only a field without a default needs its column, so that older runs stay readable when records learn to say more.
    """
    wanted = [field for field in fields(kind) if field.name not in skip]
    missing = [field.name for field in wanted if field.name not in table.column_names and field.default is MISSING]
    if missing:
        raise TableError(f"{file} lacks the columns {', '.join(missing)}")
    wanted = [field for field in wanted if field.name in table.column_names]
    rows: list[dict[str, Any]] = table.select([field.name for field in wanted]).to_pylist()
    for row in rows:
        for field in wanted:
            if field.type == "float" and row[field.name] is None:
                row[field.name] = math.nan
        if "state" in row:
            row["state"] = HospitalState(row["state"])
        if "confusion" in row:
            row["confusion"] = tuple(tuple(line) for line in row["confusion"])
    return rows
