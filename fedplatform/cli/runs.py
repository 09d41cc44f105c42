"""Commands of the runs on this machine: runs list, runs rm."""

from __future__ import annotations

from pathlib import Path

import click

from fedplatform.cli.options import AS_JSON, RUNS
from fedplatform.cli.terminal import SuggestingGroup, as_json, console, one_line_errors


@click.group(cls=SuggestingGroup)
def runs() -> None:
    """List the runs on this machine, and remove some."""


@runs.command(name="list")
@RUNS
@AS_JSON
def list_runs(*, runs: Path, json: bool) -> None:
    """List all runs with their state and the figures of their newest round."""
    with one_line_errors():
        from rich.table import Table

        from fedplatform.experiments.run_list import list_runs as listed

        found = list(listed(runs))
        if json:
            as_json(found)
            return
        table = Table("run", "state", "rounds", "balanced accuracy", "AUC", "changed (UTC)", "MB")
        for run in found:
            figures = ("–" if value is None else f"{value:.3f}" for value in (run.balanced_accuracy, run.auc))
            done = f"{run.rounds_done} of {run.rounds}"
            table.add_row(
                run.name, run.state, done, *figures, run.changed[:16].replace("T", " "), f"{run.megabytes:.0f}"
            )
        console.print(table)


@runs.command(name="rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@RUNS
@click.option("--yes", is_flag=True, help="do not ask")
def remove(names: tuple[str, ...], *, runs: Path, yes: bool) -> None:
    """Delete runs with all that is in their folders: models, defence, checkpoints, shards, audit log.

    \b
    Example:
      fedplatform runs rm lesions-mean-none-seed0
    """
    with one_line_errors():
        from fedplatform.experiments.run_list import remove_run

        if not yes:
            click.confirm(f"Delete {', '.join(str(runs / name) for name in names)}?", abort=True)
        for name in names:
            console.print(f"removed {name}, {remove_run(runs, name):.0f} MB", soft_wrap=True)
