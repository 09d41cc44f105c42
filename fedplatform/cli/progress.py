"""Bars with the time left on a terminal, one plain line a step on anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

from fedplatform.cli.terminal import console

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


class _Show(Protocol):
    def __call__(self, done: int, total: int, *, says: str, line: str = "") -> None: ...


@contextmanager
def _bar(says: str, *columns: ProgressColumn) -> Iterator[_Show]:
    """A bar that says something beside its columns; off a terminal, the lines that it is given and nothing else."""
    from rich.progress import Progress

    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(says, total=None)

        def show(done: int, total: int, *, says: str, line: str = "") -> None:
            bar.update(task, completed=done, total=total, description=says)
            if line and not console.is_terminal:
                click.echo(line)

        yield show


@contextmanager
def counting_bar(says: str, *, every: int = 0, things: str = "") -> Iterator[Callable[[int, int], None]]:
    """A bar of things with the time left; off a terminal, a plain line ``every`` so many of them, with 0 none."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with _bar(says, *columns) as show:

        def count(done: int, total: int) -> None:
            is_told = every and (done % every == 0 or done == total)
            show(done, total, says=says, line=f"{done}/{total} {things}" if is_told else "")

        yield count


@contextmanager
def benchmark_bar() -> Iterator[Callable[[Any], None]]:
    """A bar of cells on a terminal; on anything else, one plain line a finished cell."""
    from datetime import timedelta

    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    def left(seconds: float) -> str:
        return "time left unknown" if seconds != seconds else f"{timedelta(seconds=round(seconds))} left"

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with _bar("starting", *columns) as show:

        def tell(progress: Any) -> None:
            time_left, last = left(progress.seconds_left), progress.last
            line = "" if last is None else f"{progress.done}/{progress.total}  {last}; {time_left}"
            show(progress.done, progress.total, says=f"{time_left}; {progress.running}", line=line)

        yield tell


@contextmanager
def attack_bar() -> Iterator[Callable[[Any], None]]:
    """A bar of attacks with the time left on a terminal; on anything else, one plain line an attack."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with _bar("starting", *columns) as show:

        def tell(progress: Any) -> None:
            said = "" if progress.last is None else f"{progress.last}: accuracy {progress.accuracy:.3f}"
            show(progress.done, progress.total, says=said, line=said and f"{progress.done}/{progress.total}  {said}")

        yield tell
