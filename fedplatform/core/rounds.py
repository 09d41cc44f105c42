"""What happened in a run as two tables, one row a round and one a hospital and round, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from fedplatform.core.errors import FedplatformError
from fedplatform.core.messages import NAN, SUBGROUP, UNKNOWN, HospitalRecord, HospitalState, Predictions, RoundReport
from fedplatform.core.tasks import is_multilabel

PREDICTIONS = "predictions.parquet"  # what the last model says of the test scans
NOT_COLUMNS = ("hospitals", "tests")  # of a report


class TableError(FedplatformError, ValueError):
    """A table lacks a column that its rows need."""


def tables_of(reports: Sequence[RoundReport]) -> dict[str, pa.Table]:
    """The tables by the names of their files, ``rounds.parquet`` and ``hospitals.parquet``."""
    rounds = pd.DataFrame(
        [_row_of_round(report) for report in reports],
        columns=[field.name for field in fields(RoundReport) if field.name not in NOT_COLUMNS],
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
    own = _rows(rounds, RoundReport, file="rounds.parquet", skip=NOT_COLUMNS)
    return tuple(
        RoundReport(**row, hospitals=tuple(r for r in records if r.round_number == row["round_number"]))
        for row in sorted(own, key=lambda row: row["round_number"])
    )


def predictions_table(report: RoundReport) -> pa.Table:
    """What a round's model says of test scans, a row each: hospital, group within it, label, a probability a class.

    Where a scan has any number of findings, its label is a list of 0 and 1.
    """
    judged = [one for one in report.tests if len(one.labels)]
    return pa.table(
        {
            "round": pa.array([report.round_number for one in judged for _ in one.labels], pa.int64()),
            "hospital": pa.array([one.hospital_id for one in judged for _ in one.labels], pa.string()),
            "group": pa.array([int(group) for one in judged for group in one.groups], pa.int64()),
            "label": pa.array([label for one in judged for label in one.labels.tolist()], _label_type(judged)),
            "probabilities": pa.array([row for one in judged for row in one.probabilities], pa.list_(pa.float32())),
            **{f"{SUBGROUP}{name}": _words(judged, name) for name in _subgroup_names(judged)},
        }
    )


def predictions_of(table: pa.Table, *, round_number: int) -> tuple[Predictions, ...]:
    """The predictions in such a table, a hospital after the other; their loss is not kept.

    None where the table is of another round: a run that was stopped between the two files has an older one.
    """
    if set(table.column("round").to_pylist()) != {round_number}:
        return ()
    hospitals = np.array(table.column("hospital").to_pylist())
    labels, groups = (np.array(table.column(name).to_pylist(), np.int64) for name in ("label", "group"))
    rows = table.column("probabilities").to_pylist()
    names = [name for name in table.column_names if name.startswith(SUBGROUP)]
    words = {name.removeprefix(SUBGROUP): np.array(table.column(name).to_pylist(), np.str_) for name in names}
    found = []
    for name in dict.fromkeys(hospitals.tolist()):
        here = np.flatnonzero(hospitals == name)
        probabilities = np.array([rows[place] for place in here], np.float32).reshape(len(here), -1)
        subgroups = {name: of_all[here] for name, of_all in words.items()}
        found.append(
            Predictions(name, "test", probabilities, labels[here], NAN, groups=groups[here], subgroups=subgroups)
        )
    return tuple(found)


def _subgroup_names(judged: Sequence[Predictions]) -> list[str]:
    return list(dict.fromkeys(name for one in judged for name in one.subgroups))


def _words(judged: Sequence[Predictions], name: str) -> pa.Array:
    """The subgroup of each scan; a hospital that does not tell has unknown ones."""
    told = [one.subgroups.get(name, np.full(len(one.labels), UNKNOWN)) for one in judged]
    return pa.array([str(word) for words in told for word in words], pa.string())


def _label_type(judged: Sequence[Predictions]) -> Any:
    lists = any(is_multilabel(one.labels) for one in judged)
    return pa.list_(pa.int64()) if lists else pa.int64()


def _row_of_round(report: RoundReport) -> dict[str, object]:
    row = {field.name: getattr(report, field.name) for field in fields(report) if field.name not in NOT_COLUMNS}
    return {**row, "confusion": [list(line) for line in report.confusion], "label_auc": list(report.label_auc)}


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
        if "label_auc" in row:
            row["label_auc"] = tuple(math.nan if value is None else value for value in row["label_auc"])
    return rows
