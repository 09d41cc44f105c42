"""What a study leaves: the winner as a file for 'fedplatform run', its trials as a table, and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

from fedplatform.core.files import write_whole
from fedplatform.core.wording import number
from fedplatform.data.splits import Role
from fedplatform.experiments.experiment import ExperimentError
from tune.curve import breakdowns
from tune.page import write_page
from tune.study import Study
from tune.trial import Choice, Ledger, Trial

WINNER = "winner"


def conclude(study: Study, ledger: Ledger, folder: Path) -> Path:
    """Write trials.csv, curves.csv, winner.yaml, summary.txt and report.html; returns the page.

    Raises :class:`ExperimentError` where no trial came to anything.
    """
    trials = [trial for trial in ledger if trial.is_over]
    if not any(trial.figures for trial in trials):
        errors = [trial.error for trial in trials if trial.error]
        raise ExperimentError(f"no trial came to an end{'; the last failed: ' + errors[-1] if errors else ''}")
    _write(folder / "trials.csv", table_of(trials).to_csv(index=False))
    curves = [trial for trial in trials if trial.phase == "curve"]
    if curves:
        _write(folder / "curves.csv", table_of(curves).to_csv(index=False))
    winner = winner_of(study, trials)
    if winner is not None:
        experiment = study.experiment(winner)
        own = {} if experiment is None else {"winner.yaml": experiment.settings()}
        for name, more in {"choice.yaml": winner, **own, **study.files(winner)}.items():
            _write(folder / name, yaml.safe_dump(dict(more), sort_keys=False, allow_unicode=True))
    _write(folder / "summary.txt", "\n".join(summary(study, trials, winner)) + "\n")
    return write_page(study, trials, winner, folder)


def winner_of(study: Study, trials: Sequence[Trial]) -> Choice | None:
    """What the study chose: the search's winner, or the pair with which a duel ended."""
    set_one = [trial for trial in trials if trial.phase == "test" and trial.label == WINNER]
    if set_one:
        return set_one[-1].choice
    found = study.choose([trial for trial in trials if trial.phase == "search"])
    return None if found is None else found.choice


def table_of(trials: Sequence[Trial]) -> pd.DataFrame:
    """One row a trial: what was chosen, what came of it."""
    rows = [
        {"trial": t.title, "phase": t.phase, **t.choice, "scans": str(t.role), "state": str(t.state)}
        | {"steps": len(t.steps), **t.figures, "error": t.error, "seconds": round(t.seconds, 1)}
        for t in sorted(trials, key=lambda trial: (trial.phase, trial.number))
    ]
    return pd.DataFrame(rows)


def summary(study: Study, trials: Sequence[Trial], winner: Choice | None) -> list[str]:
    """The result in a few lines for a terminal."""
    states = pd.Series([str(trial.state) for trial in trials]).value_counts()
    lines = [f"trials: {', '.join(f'{count} {state}' for state, count in states.items())}"]
    if winner is not None:
        lines.append(f"winner: {', '.join(f'{name}={_short(value)}' for name, value in winner.items())}")
    else:
        lines.append(f"no winner: no trial was measured by {next(iter(study.objectives))} to its end")
    lines += [
        f"{trial.title}, on test scans: {_figures_in_words(trial.figures, list(study.objectives))}"
        for trial in trials
        if trial.role is Role.TEST and trial.phase == "test" and trial.figures
    ]
    lines += [f"{rule}: {what}" for rule, what in breakdowns(trials).items()]
    return lines


def _figures_in_words(figures: Mapping[str, float], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {figures[name]:.3f}" for name in names if name in figures)


def _short(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))
