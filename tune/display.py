"""What a person sees of a study under way: the last trials and the time left; off a terminal, a line a trial."""

from __future__ import annotations

import statistics
import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fedplatform.core.wording import number
from tune.phase import Phase
from tune.trial import State, Trial

SHOWN = 12


class TrialTable:
    """A live table of trials, an observer of a study; ``jobs`` trials run at once."""

    def __init__(self, title: str, *, console: Console, jobs: int, seconds: float = float("inf")) -> None:
        self._title, self._console, self._jobs = title, console, jobs
        self._until = time.monotonic() + seconds
        self._phase: Phase | None = None
        self._trials: dict[str, Trial] = {}
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=2)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        else:
            self._console.print(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def begin(self, phase: Phase) -> None:
        """Another part begins."""
        self._phase = phase
        if not self._console.is_terminal:
            known = f", {len(phase.trials)} known" if phase.trials else ""
            self._console.print(f"{phase.name}: {phase.total} trials{known}")

    def update(self, trial: Trial) -> None:
        """A trial began, made a step, or is over."""
        self._trials[trial.name] = trial
        if trial.is_over and not self._console.is_terminal:
            # The phase hears of it after its observers.
            self._console.print(
                f"{trial.title}  {said_of(trial.choice)}  {outcome(trial)}  {self._left(1)} left", soft_wrap=True
            )

    def _left(self, done_more: int = 0) -> str:
        if self._phase is None:
            return "unknown"
        spent = [trial.seconds for trial in self._trials.values() if trial.is_over and trial.phase == self._phase.name]
        if not spent:
            return "unknown"
        trials = self._phase.total - len(self._phase.trials) - done_more
        seconds = max(0, trials) * statistics.mean(spent) / self._jobs
        return str(timedelta(seconds=round(min(seconds, max(0.0, self._until - time.monotonic())))))

    def _table(self) -> Table:
        done = len(self._phase.trials) if self._phase else 0
        part = f"{self._phase.name}, {done} of {self._phase.total}, {self._left()} left" if self._phase else "starting"
        table = Table("trial", "choice", "after steps", "figures", title=f"{self._title}: {part}", title_justify="left")
        for trial in list(self._trials.values())[-SHOWN:]:
            table.add_row(trial.title, said_of(trial.choice), str(len(trial.steps)), outcome(trial))
        return table


def said_of(choice: object) -> str:
    """A choice in words."""
    assert isinstance(choice, dict)
    return ", ".join(f"{name} {number(value) if isinstance(value, float) else value}" for name, value in choice.items())


def outcome(trial: Trial) -> str:
    """What came of a trial in words."""
    figures = ", ".join(f"{name} {number(value)}" for name, value in trial.figures.items())
    match trial.state:
        case State.FAILED:
            return f"failed: {trial.error}"
        case State.STOPPED:
            return f"{figures}; stopped after step {len(trial.steps)}"
        case State.RUNNING:
            return figures or "running"
    return figures
