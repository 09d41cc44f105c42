"""The table of every hospital's model on every hospital's test scans, as a run's folder keeps it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fedplatform.core.files import write_whole

CROSS_SITE = "cross_site.parquet"


def write_cross_site(path: Path, table: pd.DataFrame) -> None:
    """Put the table into the run's folder."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    write_whole(path / CROSS_SITE, lambda file: pq.write_table(arrow, file))


def read_cross_site(path: Path, *, round_number: int) -> pd.DataFrame | None:
    """The table in a run's folder, models and sites in order; None where there is none of this round's model."""
    file = path / CROSS_SITE
    if not file.is_file():
        return None
    table: pd.DataFrame = pq.read_table(file).to_pandas()
    if not len(table) or set(table["round"]) != {round_number}:
        return None
    return table.drop(columns="round").set_index(["model", "site"])
