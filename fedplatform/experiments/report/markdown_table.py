"""The table of defences against attackers in Markdown."""

from __future__ import annotations

import pandas as pd

from fedplatform.core.wording import listing
from fedplatform.experiments.report.defence_grid import DefenceCell, DefenceGrid, DefenceRow, defence_grids
from fedplatform.experiments.report.threat_wording import DEFENCES


def defence_markdown(frame: pd.DataFrame) -> str:
    """A table for each data set, split and epsilon: percent answered rightly, mean ± sd over seeds, the best in bold.

    ``frame`` has the columns of evaluation.parquet, of one run or of many. The last column is the lowest attacked tier.
    Raises :class:`ReportError` where a table would mislead.
    """
    return "\n\n".join(_markdown(grid) for grid in defence_grids(frame)) + "\n"


def _markdown(grid: DefenceGrid) -> str:
    def text(row: DefenceRow, cell: DefenceCell | None) -> str:
        if cell is None:
            return "–"
        fewer = f" ({cell.seeds} of {grid.seeds} seeds)" if cell.seeds < grid.seeds else ""
        return f"{f'**{cell.spread}**' if grid.is_best(row, cell) else cell.spread}{fewer}"

    def worst(row: DefenceRow) -> str:
        if row.is_reference or row.worst is None:
            return "–"
        figure = f"**{row.worst.spread}**" if grid.is_best_worst(row) else row.worst.spread
        return f"{figure} ({row.worst.tier}{f'; not tried: {listing(row.missing)}' if row.missing else ''})"

    lines = [["defence", "adversarial training", *grid.tiers, "min"], ["---", "---", *["---:"] * (len(grid.tiers) + 1)]]
    lines += [
        [
            DEFENCES.get(row.defence, row.defence),
            "yes" if row.adversarial_training else "no",
            *(text(row, cell) for cell in row.cells),
            worst(row),
        ]
        for row in grid.rows
    ]
    lines.append(["n", "", *(grid.scans(tier) for tier in grid.tiers), ""])
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    spread = f"mean ± sd over {grid.seeds} seeds" if grid.seeds > 1 else "one seed"
    return (
        f"{grid.title}, epsilon {grid.strength}; answered rightly in percent, {spread}, n scans of all seeds\n\n{body}"
    )
