"""The comparison of many runs: a page for the browser, and its tables in Markdown."""

from __future__ import annotations

import base64
from pathlib import Path

import pandas as pd

from fedplatform.core.template import load_template
from fedplatform.experiments.report.grid import Cell, Grid, Metric, Row, grids


def write_comparison(folder: Path, table: pd.DataFrame) -> Path:
    """Write ``comparison.html``: rules against attacks, one row of ``table`` a run; returns its path.

    ``table`` has the columns dataset, split, rule, attack, hospitals, attackers, rounds, seed, accuracy, macro_f1 and
    auc; the rules ``nearest_neighbour`` and ``central`` are references and never count as a defence. Only runs of one
    setting share a table. Raises :class:`ReportError` where a column is missing, an accuracy is no share in [0, 1] or a
    run is there twice.
    """
    csv = base64.b64encode(table.to_csv(index=False).encode()).decode()
    metrics: dict[str, Metric] = {
        "Accuracy": "accuracy",
        "Macro-F1": "macro_f1",
        "Attack success: stamped scans answered with the backdoor's target": "attack_success",
    }
    page = load_template("comparison.html", "fedplatform.experiments.report").render(
        metrics=[(title, found) for title, metric in metrics.items() if (found := grids(table, metric))],
        num_runs=len(table),
        csv=f"data:text/csv;charset=utf-8;base64,{csv}",
    )
    path = folder / "comparison.html"
    path.write_text(page, encoding="utf-8")
    return path


def comparison_markdown(table: pd.DataFrame, *, metric: Metric = "accuracy") -> str:
    """The tables of :func:`write_comparison` in Markdown: percent, mean ± sd over seeds, the best defence in bold.

    Where an attack plants a backdoor, its success follows in tables of its own.
    """
    what = {"accuracy": "accuracy", "macro_f1": "macro-F1", "attack_success": "attack success"}
    metrics: list[Metric] = [metric, "attack_success"] if metric != "attack_success" else [metric]
    tables = [_markdown(grid, what[shown]) for shown in metrics for grid in grids(table, shown)]
    return "\n\n".join(tables) + "\n"


def _markdown(grid: Grid, what: str) -> str:
    def text(row: Row, cell: Cell | None) -> str:
        if cell is None:
            return "–"
        fewer = f" (n={cell.seeds})" if cell.seeds < grid.seeds else ""
        return f"{f'**{cell.text}**' if grid.is_best(row, cell) else cell.text}{fewer}"

    def worst(row: Row) -> str:
        return "–" if row.is_reference else f"{row.worst.percent} ({row.worst.attack})"

    lines = [["rule", *grid.attacks, "worst"], ["---", *["---:"] * (len(grid.attacks) + 1)]]
    lines += [[row.rule, *(text(row, cell) for cell in row.cells), worst(row)] for row in grid.rows]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    spread = f"mean ± sd over {grid.seeds} seeds (n where fewer)" if grid.seeds > 1 else "one seed"
    return f"{grid.title}; {what} in percent, {spread}\n\n{body}"
