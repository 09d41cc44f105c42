"""Fills the table cell by cell, on all cores, and goes on where it was stopped."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from fedplatform.core.files import claim, claim_files
from fedplatform.core.specification import plugin_files
from fedplatform.core.workers import as_they_finish, workers
from fedplatform.data.error import DataError
from fedplatform.experiments.baselines import CENTRAL
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.run import partition_data
from fedplatform.experiments.trust_benchmark.cells import Benchmark, Cell, partition_of
from fedplatform.experiments.trust_benchmark.figures import INFEASIBLE, Filled, fill_cell, in_one_line
from fedplatform.experiments.trust_benchmark.results import Results


@dataclass(frozen=True)
class Progress:
    """Where a benchmark stands: ``last`` was just finished (None at the start), ``running`` is the oldest under way."""

    done: int
    total: int
    seconds_left: float
    last: Filled | None = None
    running: str = ""


Observer = Callable[[Progress], None]


def fill(
    benchmark: Benchmark,
    *,
    folder: Path,
    jobs: int,
    data_folder: Path | None = None,
    observer: Observer = lambda _: None,
) -> pd.DataFrame:
    """Fill the table cell by cell in ``jobs`` processes, 0 for this one; a second call goes on where the first stopped.

    A cell that cannot be run, or fails, becomes a row that says so, and is tried again by the next call. Raises
    :class:`ExperimentError` where the folder holds another benchmark, DataError where the data set is not there.
    """
    for split in benchmark.splits:
        partition_of(split)
    cells = benchmark.cells()
    cells[0].without_rule().open_data(data_folder)
    claim(folder, benchmark.settings, what="benchmark", before=Experiment.defaults())
    claim_files(folder, plugin_files(), what="benchmark")
    results = Results(folder, cells)
    left = [cell for cell in cells if not results.has(cell)]
    done = len(cells) - len(left)
    under_way: list[str] = []

    def tell(last: Filled | None = None) -> None:
        running = next(iter(under_way), "")
        seconds = results.median_seconds() * (len(cells) - done) / max(jobs, 1)
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
