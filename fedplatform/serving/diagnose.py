"""A folder of scans, diagnosed without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fedplatform.defence import DefendedClassifier
from fedplatform.serving.intake import Limits

BATCH = 16


def diagnose_folder(
    defended: DefendedClassifier,
    folder: Path,
    out: Path,
    *,
    classes: Sequence[str],
    size: int,
    channels: int,
    hospital_id: str,
    model_version: str,
    limits: Limits,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Diagnose every file below ``folder`` and write a row a scan to ``out``, a .csv or a .parquet file.

    A file that is refused becomes a row with the reason. Rows are kept in a journal beside ``out`` after every batch,
    so a call that was stopped goes on where it was, and a file that was diagnosed by the same model is not again.
    """
    raise NotImplementedError
