"""Rules against attacks over seeds: the table, with the rows that keep it honest."""

from __future__ import annotations

import itertools
import logging
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pandas as pd

from fedplatform.core.files import claim, claim_files, write_whole
from fedplatform.core.messages import NAN
from fedplatform.core.specification import plugin_files
from fedplatform.experiments.baselines import CENTRAL, NEAREST_NEIGHBOUR, nearest_neighbour
from fedplatform.experiments.callbacks import Callback
from fedplatform.experiments.engine import Engine
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.report import write_comparison
from fedplatform.experiments.run import NoEffectError, partition_data, run

log = logging.getLogger(__name__)

CELL = ("dataset", "split", "rule", "attack", "hospitals", "byzantine", "rounds", "seed")
FIGURES = ("accuracy", "macro_f1", "auc", "attack_success")

Announce = Callable[[str, int, int], AbstractContextManager[Callback]]


def unannounced(cell: str, number: int, total: int) -> AbstractContextManager[Callback]:  # noqa: ARG001
    """Announce no cell."""
    return nullcontext(Callback())


@dataclass(frozen=True)
class Grid:
    """Which cells to fill: every rule against every attack for every seed.

    For each seed two reference rows come first. ``nearest_neighbour`` answers with the label of the most similar
    training picture: what memorising alone is worth on this split. ``central`` trains the same network with the same
    budget on all scans in one place: what the federation gives away.
    """

    base: Experiment
    rules: tuple[str, ...]
    attacks: tuple[str, ...]
    seeds: tuple[int, ...]

    def rows(self) -> list[tuple[str, Experiment]]:
        """Each row's name and the experiment behind it, the whole table of a seed before the next seed."""
        rows: list[tuple[str, Experiment]] = []
        for seed in self.seeds:
            reference = self.base.replace(seed=seed, rule="mean", attack="none")
            rows += [(NEAREST_NEIGHBOUR, reference), (CENTRAL, reference)]
            for attack, rule in itertools.product(self.attacks, self.rules):
                cell = self.base.replace(seed=seed, rule=rule, attack=attack)
                rows.append((cell.rule_text, cell))
        return rows


class Results:
    """The filled cells, in a CSV file that is whole after every cell."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = pd.read_csv(path) if path.exists() else pd.DataFrame()
        self.frame = found.reindex(columns=[*CELL, *FIGURES])  # an older file lacks the newest figures

    def has(self, cell: Experiment, rule: str) -> bool:
        """Whether this cell is filled."""
        row = self._key(cell, rule)
        return bool((self.frame[list(CELL)] == pd.Series(row)).all(axis=1).any())

    def add(self, cell: Experiment, rule: str, figures: tuple[float, float, float, float]) -> None:
        """Fill a cell."""
        row = {**self._key(cell, rule), **dict(zip(FIGURES, figures, strict=True))}
        self.frame = pd.DataFrame([*self.frame.to_dict("records"), row], columns=[*CELL, *FIGURES])
        write_whole(self._path, lambda path: self.frame.to_csv(path, index=False, float_format="%.4f"))

    @staticmethod
    def _key(cell: Experiment, rule: str) -> dict[str, object]:
        return {
            "dataset": cell.data_slug,
            "split": cell.split_slug,
            "rule": rule,
            "attack": cell.attack_text,
            "hospitals": cell.hospitals,
            "byzantine": cell.byzantine,
            "rounds": cell.rounds,
            "seed": cell.seed,
        }


def folder_name(rule: str, attack: str, seed: int) -> str:
    """The folder of a cell's run: ``trimmed_mean(f=2)-none-seed0`` without what a shell takes for its own.

    Of a rule or attack in a file of the user's own the class is named, and a digest tells two files apart.
    """
    told = "-".join(text.rpartition(":")[2] for text in (rule, attack))
    digest = f"-{sha256(f'{rule} {attack}'.encode()).hexdigest()[:6]}" if ":" in rule + attack else ""
    return f"{re.sub(r'[^A-Za-z0-9_.+=-]+', '_', told).strip('_')}{digest}-seed{seed}"


def compare(
    grid: Grid,
    *,
    engine: Engine,
    folder: Path,
    data_folder: Path | None = None,
    announce: Announce = unannounced,
    tracked: bool = True,
) -> pd.DataFrame:
    """Fill the grid cell by cell into ``folder/results.csv``; a second call goes on where the first stopped.

    A cell is known by its rule and attack with all of their settings; one in which nothing was learned has no figures.
    ``announce(cell, number, total)`` hears which cell comes next and answers with a callback for its run; ``tracked``
    is of :func:`~fedplatform.experiments.run.run`. Raises :class:`ExperimentError` where the folder holds another
    comparison, or one with another draft of a rule, attack or network of the user's own.
    """
    rows = grid.rows()
    settings = {key: value for key, value in grid.base.settings().items() if key not in ("seed", "rule", "attack")}
    claim(folder, settings, what="comparison", before=Experiment.defaults())
    claim_files(folder, plugin_files(), what="comparison")
    results = Results(folder / "results.csv")
    for number, (rule, cell) in enumerate(rows, start=1):
        if results.has(cell, rule):
            continue
        shards = folder / "shards" / f"seed-{cell.seed}"
        if not shards.exists():
            partition_data(cell, shards, data_folder=data_folder)
        with announce(f"{rule} against {cell.attack_text}, seed {cell.seed}", number, len(rows)) as listener:
            if rule == NEAREST_NEIGHBOUR:
                figures = nearest_neighbour(shards)
                results.add(cell, rule, (figures.accuracy, figures.macro_f1, figures.auc, NAN))
                continue
            name = folder_name(rule, cell.attack_text, cell.seed)
            # A cell without a result was cut off in mid-run: what it left is not worth keeping.
            shutil.rmtree(folder / name, ignore_errors=True)
            central = rule == CENTRAL
            try:
                _, reports = run(
                    cell.replace(hospitals=1, byzantine=0, f=0, quorum=1, partition="iid") if central else cell,
                    engine=engine,
                    runs=folder,
                    name=name,
                    data_folder=data_folder,
                    shards=None if central else shards,
                    callbacks=[listener],
                    resumable=False,
                    tracked=tracked,
                )
            except NoEffectError as error:
                log.warning("%s: %s", name, error)
                results.add(cell, rule, (NAN, NAN, NAN, NAN))
            else:
                last = reports[-1]
                results.add(cell, rule, (last.accuracy, last.macro_f1, last.auc, last.attack_success))
    write_comparison(folder, results.frame)
    return results.frame
