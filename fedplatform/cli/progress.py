"""Bars with the time left on a terminal, one plain line a step on anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from fedplatform.cli.terminal import console


@contextmanager
def partitioning_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar with the time left, for one pass over a data set."""
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("dealing scans to hospitals", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def folder_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar of files with the time left on a terminal; on anything else, a plain line a hundred files."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("diagnosing", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if not console.is_terminal and (done % 100 == 0 or done == total):
                click.echo(f"{done}/{total} files")

        yield show


@contextmanager
def benchmark_bar() -> Iterator[Callable[[Any], None]]:
    """A bar of cells on a terminal; on anything else, one plain line a finished cell."""
    from datetime import timedelta

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    def left(seconds: float) -> str:
        return "time left unknown" if seconds != seconds else f"{timedelta(seconds=round(seconds))} left"

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def show(progress: Any) -> None:
            if console.is_terminal:
                description = f"{left(progress.seconds_left)}; {progress.running}"
                bar.update(task, completed=progress.done, total=progress.total, description=description)
            elif progress.last is not None:
                click.echo(f"{progress.done}/{progress.total}  {progress.last}; {left(progress.seconds_left)}")

        yield show


@contextmanager
def attack_bar() -> Iterator[Callable[[Any], None]]:
    """A bar of attacks with the time left on a terminal; on anything else, one plain line an attack."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def show(progress: Any) -> None:
            said = "" if progress.last is None else f"{progress.last}: accuracy {progress.accuracy:.3f}"
            if console.is_terminal:
                bar.update(task, completed=progress.done, total=progress.total, description=said)
            elif said:
                click.echo(f"{progress.done}/{progress.total}  {said}")

        yield show
