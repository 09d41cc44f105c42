"""Rules against attacks: which runs share a table, and what stands in its cells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from fedplatform.core.wording import count
from fedplatform.experiments.report.error import ReportError

Metric = Literal["accuracy", "macro_f1", "attack_success"]

REFERENCES = ("nearest_neighbour", "central", "honest_only")
COLUMNS = (
    ("dataset", "split", "rule", "attack", "hospitals", "byzantine", "rounds", "seed"),
    ("accuracy", "macro_f1", "auc"),
)


@dataclass(frozen=True)
class Cell:
    """One rule against one attack, over the seeds; without a mean where nothing was learned for one of them."""

    attack: str
    mean: float  # NaN where it has none
    sd: float  # NaN for a single seed
    seeds: int

    @property
    def text(self) -> str:
        """Percent, with the spread where there is more than one seed."""
        return f"{self.percent}{'' if math.isnan(self.sd) else f' ± {100 * self.sd:.1f}'}"

    @property
    def percent(self) -> str:
        """The mean in percent, or a dash."""
        return "–" if math.isnan(self.mean) else f"{100 * self.mean:.1f}"

    @property
    def shade(self) -> float:
        """The mean, 0 where there is none."""
        return 0.0 if math.isnan(self.mean) else self.mean


@dataclass(frozen=True)
class Row:
    """One rule against every attack of the table; None where it was not run."""

    rule: str
    is_reference: bool
    cells: tuple[Cell | None, ...]
    less_is_better: bool = False

    @property
    def worst(self) -> Cell:
        """The worst of the cells that were run; worse than all is one in which nothing was learned."""
        sign = -1 if self.less_is_better else 1
        return min(
            (cell for cell in self.cells if cell), key=lambda cell: (not math.isnan(cell.mean), sign * cell.shade)
        )

    @property
    def is_complete(self) -> bool:
        """Whether every attack of the table was run."""
        return None not in self.cells


@dataclass(frozen=True)
class Grid:
    """Rules against attacks in one setting."""

    title: str
    attacks: tuple[str, ...]
    rows: tuple[Row, ...]
    best: dict[str, float]  # the best mean of a defence, by attack

    @property
    def seeds(self) -> int:
        """How many seeds the fullest cell has."""
        return max(cell.seeds for row in self.rows for cell in row.cells if cell)

    def is_best(self, row: Row, cell: Cell) -> bool:
        """Whether no other defence does better against this attack."""
        return not row.is_reference and cell.mean == self.best[cell.attack]


def grids(table: pd.DataFrame, metric: Metric) -> list[Grid]:
    """One grid for each setting; raises :class:`ReportError` where the table would mislead.

    The success of backdoors has the attacks that plant one and no others, and less of it is better.
    """
    _check(table)
    if metric == "attack_success":
        planted = table.loc[table[metric].notna(), "attack"] if metric in table.columns else ()
        table = table[table["attack"].isin(planted)]
    return [_grid(title, frame, metric) for title, frame in _by_setting(table)]


def _check(table: pd.DataFrame) -> None:
    missing = [name for names in COLUMNS for name in names if name not in table.columns]
    if missing:
        raise ReportError(f"a comparison needs the columns {', '.join(sum(COLUMNS, ()))}, got no {', '.join(missing)}")
    if table.empty:
        raise ReportError("a comparison needs at least one run, got an empty table")
    for metric in ("accuracy", "macro_f1"):
        wrong = table[~(table[metric].between(0, 1) | table[metric].isna())]
        if len(wrong):
            raise ReportError(f"{metric} is a share in [0, 1], got {wrong[metric].iloc[0]} in row {wrong.index[0]}")
    twice = table[table.duplicated(list(COLUMNS[0]))]
    if len(twice):
        run = ", ".join(f"{name} {twice[name].iloc[0]}" for name in COLUMNS[0])
        raise ReportError(f"a comparison counts every run once, got two rows for {run}")


def _by_setting(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Runs that may stand in one table: same data, split, hospitals, rounds and, where attacked, attackers.

    Runs without an attack stand beside every number of attackers, a reference beside every split that extends its own.
    """
    is_reference = table["rule"].isin(REFERENCES)
    references, federated = table[is_reference], table[~is_reference]
    unplaced = references
    settings = []
    for _, group in federated.groupby(["dataset", "split", "hospitals", "rounds"], sort=False):
        dataset, split = str(group["dataset"].iloc[0]), str(group["split"].iloc[0])
        same = references[references["dataset"] == dataset]
        exact = same[same["split"] == split]
        parts = set(split.split("+"))
        beside = exact if len(exact) else same[[set(other.split("+")) <= parts for other in same["split"]]]
        unplaced = unplaced.drop(beside.index, errors="ignore")
        is_attacked = group["attack"] != "none"
        for byzantine in group.loc[is_attacked, "byzantine"].drop_duplicates().astype(int).tolist() or [0]:
            rounds = count(int(group["rounds"].iloc[0]), "round")
            crowd = f"{group['hospitals'].iloc[0]} hospitals, {count(byzantine, 'attacker')}, {rounds}"
            runs = group[~is_attacked | (group["byzantine"] == byzantine)]
            settings.append((f"{dataset}, {split}: {crowd}", pd.concat([runs, beside])))
    for _, group in unplaced.groupby(["dataset", "split"], sort=False):
        settings.append((f"{group['dataset'].iloc[0]}, {group['split'].iloc[0]}: references only", group))
    return settings


def _grid(title: str, frame: pd.DataFrame, metric: Metric) -> Grid:
    twice = frame[frame.duplicated(["rule", "attack", "seed"])]
    if len(twice):
        rule, attack, seed = (twice[name].iloc[0] for name in ("rule", "attack", "seed"))
        raise ReportError(
            f"{title}: a comparison counts every seed once, got two rows for {rule}, {attack}, seed {seed}"
        )
    attacks = sorted(frame["attack"].unique(), key=lambda attack: attack != "none")
    rows = []
    for rule, runs in frame.groupby("rule", sort=False):
        cells: list[Cell | None] = []
        for attack in attacks:
            values = runs.loc[runs["attack"] == attack, metric]
            mean, sd = float(values.mean(skipna=False)), float(values.std(skipna=False))
            cells.append(Cell(attack, mean, sd, len(values)) if len(values) else None)
        rows.append(Row(str(rule), rule in REFERENCES, tuple(cells), less_is_better=metric == "attack_success"))
    better, worst = (min, math.inf) if metric == "attack_success" else (max, -math.inf)
    best = dict.fromkeys(attacks, worst)
    for cell in (cell for row in rows if not row.is_reference for cell in row.cells if cell):
        best[cell.attack] = better(best[cell.attack], cell.mean)
    return Grid(title, tuple(attacks), tuple(sorted(rows, key=lambda row: row.is_reference)), best)
