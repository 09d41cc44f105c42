"""A defence in one sentence: what is left of it under its strongest attacker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedplatform.core.wording import listing, percent
from fedplatform.experiments.report.defence_grid import FULL, NO_DEFENCE, DefenceCell, DefenceGrid, DefenceRow
from fedplatform.experiments.report.threat_wording import in_order, is_named_attack


@dataclass(frozen=True)
class Minimum:
    """What a defence keeps under the strongest attacker at one epsilon."""

    strength: str
    row: DefenceRow
    cell: DefenceCell


def minima(grids: Sequence[DefenceGrid]) -> list[Minimum]:
    """Of the full defence and of none, for each epsilon; those that were attacked at all."""
    return [
        Minimum(grid.strength, row, row.worst)
        for defence in (FULL, NO_DEFENCE)
        for grid in grids
        for row in grid.rows
        if row.defence == defence and row.worst
    ]


def defence_headline(grids: Sequence[DefenceGrid]) -> str:
    """What the full defence keeps under the strongest attacker at each epsilon, beside no defence."""
    found = minima(grids)
    names = list(dict.fromkeys(one.row.name for one in found))
    if not found:
        return "Neither the full defence nor an undefended model was attacked."
    says = []
    for name in names:
        own = [one for one in found if one.row.name == name]
        kept = listing([f"{percent(one.cell.accuracy)} at epsilon {one.strength}" for one in own])
        left_out = list(dict.fromkeys(tier for one in own for tier in one.row.missing))
        says.append(f"{name} keeps {kept}{f' (not tried: {listing(left_out)})' if left_out else ''}")
    named = in_order(tier for grid in grids for tier in grid.tiers if is_named_attack(tier))
    return f"Accuracy under the strongest attacker of {listing(['T1 to T5', *named])}: {'; '.join(says)}."
