"""Defences against attackers: which cells share a table, and what stands in them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from fedplatform.core.statistics import wilson
from fedplatform.experiments.report.finished_evaluation import SETTING, checked_cells
from fedplatform.experiments.report.threat_wording import (
    ATTACKS,
    CLEAN,
    REFERENCES,
    TIERS,
    defence_words,
    epsilon_words,
    in_order,
    is_named_attack,
)

FULL, NO_DEFENCE = "full", "no_defence"
UNNOTICED = "T4_unnoticed"
STRONG = "T4_strong"
OPTIONAL = (STRONG, "T4_flood")  # tried on some rows for what they say of those: another lacks nothing without


@dataclass(frozen=True)
class DefenceCell:
    """One defence against one tier, over the seeds."""

    tier: str
    accuracy: float  # mean over the seeds of the share answered rightly
    sd: float  # of the seeds; NaN for a single one
    n: int  # scans of all seeds
    effective: float  # how many independent ones they are worth, for they come in groups
    seeds: int
    referred: float  # share sent to a radiologist, whatever the forced answer was

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, all seeds pooled, as many independent scans as they are worth."""
        return wilson(self.accuracy, self.effective)

    @property
    def spread(self) -> str:
        """Percent, with the spread over seeds where there is more than one."""
        return f"{100 * self.accuracy:.1f}{'' if math.isnan(self.sd) else f' ± {100 * self.sd:.1f}'}"


@dataclass(frozen=True)
class DefenceRow:
    """One defence against every tier of a table; None where it was not measured."""

    defence: str
    adversarial_training: bool
    cells: tuple[DefenceCell | None, ...]
    missing: tuple[str, ...]  # tiers that a minimum over all attackers would need

    @property
    def name(self) -> str:
        """In words."""
        return defence_words(self.defence, adversarial_training=self.adversarial_training)

    @property
    def is_reference(self) -> bool:
        """Whether it stands beside the defences and is none."""
        return self.defence in REFERENCES

    @property
    def worst(self) -> DefenceCell | None:
        """The attacked cell with the lowest accuracy: the figure that counts; None where no attack was tried."""
        attacked = [cell for cell in self.cells if cell and cell.tier != CLEAN]
        return min(attacked, key=lambda cell: cell.accuracy, default=None)


@dataclass(frozen=True)
class DefenceGrid:
    """Defences against tiers at one epsilon of one data set."""

    title: str
    epsilon: float
    tiers: tuple[str, ...]
    rows: tuple[DefenceRow, ...]

    @property
    def strength(self) -> str:
        """Epsilon in words."""
        return epsilon_words(self.epsilon)

    @property
    def seeds(self) -> int:
        """How many seeds the fullest cell has."""
        return max(cell.seeds for row in self.rows for cell in row.cells if cell)

    def is_best(self, row: DefenceRow, cell: DefenceCell) -> bool:
        """Whether no other defence does better against this tier, which all are tried against."""
        rivals = [own for other in self.rows if not other.is_reference for own in other.cells if own]
        best = max((own.accuracy for own in rivals if own.tier == cell.tier), default=math.inf)
        return not row.is_reference and cell.tier not in OPTIONAL and cell.accuracy == best

    def is_best_worst(self, row: DefenceRow) -> bool:
        """Whether no other defence has a higher minimum; one that some attacker has not tried does not compete.

        Nor does one that the attacker with patience, or one asked for by name, has spared where he has tried others.
        """
        extra = {tier for tier in self.tiers if tier == STRONG or is_named_attack(tier)}
        rivals = [
            other
            for other in self.rows
            if not (other.is_reference or other.missing) and extra <= {cell.tier for cell in other.cells if cell}
        ]
        best = max((other.worst.accuracy for other in rivals if other.worst), default=math.inf)
        return row in rivals and row.worst is not None and row.worst.accuracy == best

    def scans(self, tier: str) -> str:
        """On how many scans the cells of a tier were measured, ``100`` or ``80 to 100``."""
        numbers = [cell.n for row in self.rows for cell in row.cells if cell and cell.tier == tier]
        return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def defence_grids(frame: pd.DataFrame) -> list[DefenceGrid]:
    """One grid for each data set, size, split and epsilon, clean scans beside every epsilon.

    ``frame`` has the columns of evaluation.parquet; raises :class:`ReportError` where a table would mislead.
    """
    frame = checked_cells(frame)
    grids = []
    for setting, cells in frame.groupby(list(SETTING), sort=False):
        title = "{}, {} pixels, {}".format(*setting)
        clean, attacked = cells[cells["tier"] == CLEAN], cells[cells["tier"] != CLEAN]
        for epsilon in sorted(attacked["epsilon"].unique()) or [0.0]:
            same = pd.concat([clean, attacked[attacked["epsilon"] == epsilon]])
            grids.append(_grid(title, float(epsilon), same))
    return grids


def _grid(title: str, epsilon: float, frame: pd.DataFrame) -> DefenceGrid:
    tiers = in_order(map(str, frame["tier"]))
    due = [tier for tier in TIERS if tier in ATTACKS or (tier in tiers and tier not in (CLEAN, *OPTIONAL))]
    rows = []
    for (defence, adversarial), own in frame.groupby(["defence", "adversarial_training"], sort=False):
        by_tier = {str(tier): _cell(str(tier), group) for tier, group in own.groupby("tier")}
        # Where nothing detects there is nothing to stay below.
        has_detector = own["auc"].notna().any()
        missing = tuple(tier for tier in due if tier not in by_tier and (has_detector or tier != UNNOTICED))
        rows.append(DefenceRow(str(defence), bool(adversarial), tuple(map(by_tier.get, tiers)), missing))
    return DefenceGrid(title, epsilon, tiers, tuple(sorted(rows, key=lambda row: not row.is_reference)))


def _cell(tier: str, seeds: pd.DataFrame) -> DefenceCell:
    return DefenceCell(
        tier=tier,
        accuracy=float(seeds["accuracy"].mean()),
        sd=float(seeds["accuracy"].std()),
        n=int(seeds["n"].sum()),
        effective=float(seeds["effective"].sum()),
        seeds=len(seeds),
        referred=float(seeds["abstained"].mean()),
    )
