"""The page of a study."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import optuna

from fedplatform.core.template import load_template
from fedplatform.core.wording import number
from fedplatform.experiments.report.plot import Plot, Series, draw, style_of
from tune.curve import NAMES, breakdowns, curves_of
from tune.phase import Budget, Search
from tune.study import Study, as_maximisation
from tune.trial import Choice, State, Trial

STYLES = {State.FINISHED: "s-0", State.STOPPED: "s-0 hollow", State.FAILED: "s-3"}
SHOWN = 40


def write_page(study: Study, trials: Sequence[Trial], winner: Choice | None, folder: Path) -> Path:
    """Write ``report.html``, one page that needs no other file and no network; returns its path."""
    objectives = list(study.objectives)
    searched = [trial for trial in trials if trial.phase.startswith(("search", "turn"))]
    best = study.choose([trial for trial in searched if trial.phase == "search"])
    ranked = sorted(searched, key=lambda t: (t.state is not State.FINISHED, -study.worth(t, objectives[0])))
    tested = [trial for trial in trials if trial.phase == "test"]
    page = load_template("study.html", "tune", "fedplatform.experiments.report").render(
        name=folder.name,
        study=type(study).__name__.lower(),
        purpose=(type(study).__doc__ or "").strip().splitlines()[0],
        objectives=[(name, "high" if goal == "max" else "low") for name, goal in study.objectives.items()],
        best=best,
        winner={} if winner is None else dict(winner),
        tested=tested,
        columns=list(dict.fromkeys(name for trial in tested for name in trial.figures)),
        trials=ranked[:SHOWN],
        names=list(dict.fromkeys(name for trial in ranked for name in trial.choice)),
        measured=list(dict.fromkeys(name for trial in searched for name in trial.figures)),
        num_trials=len(searched),
        failed=[trial for trial in trials if trial.state is State.FAILED],
        counts={str(state): sum(trial.state is state for trial in searched) for state in STYLES},
        breakdowns=breakdowns(trials),
        drawings=[*_history(study, searched), *_fronts(study, searched), *_curves(trials), *_trace(trials)],
        slices=list(_slices(study, searched)),
        importances=_importances(study, searched),
        files=[place.name for place in sorted(folder.glob("*.yaml")) if place.name != "study.yaml"],
        minutes=sum(trial.seconds for trial in trials) / 60,
        said=_cell,
        command=f"fedplatform run {folder / 'winner.yaml'}",
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _history(study: Study, trials: Sequence[Trial]) -> Iterator[Plot]:
    """Every trial in the order of time, and the best so far."""
    first, goal = next(iter(study.objectives.items()))
    shown = [(place, trial) for place, trial in enumerate(t for t in trials if t.figures) if first in trial.figures]
    if not shown:
        return
    series = []
    whole = [(place, trial) for place, trial in shown if trial.state is State.FINISHED]
    if whole and len({trial.phase for _, trial in shown}) == 1:
        best = (np.maximum if goal == "max" else np.minimum).accumulate([trial.figures[first] for _, trial in whole])
        steps = [(place, float(value), "") for (place, _), value in zip(whole, best, strict=True)]
        series.append(Series("best so far", "s-1", steps, "step"))
    for state, style in STYLES.items():
        points = [(place, trial.figures[first], _says(trial, first)) for place, trial in shown if trial.state is state]
        if points:
            series.append(Series(str(state), style, points))
    yield draw("Search", series, x_label="trial", y_label=first, caption=f"{first} on validation scans, trial by trial")


def _slices(study: Study, trials: Sequence[Trial]) -> Iterator[Plot]:
    """The first objective against every name of the space."""
    first = next(iter(study.objectives))
    shown = [trial for trial in trials if trial.state is State.FINISHED and first in trial.figures]
    for name in study.space():
        values = [trial.choice.get(name) for trial in shown]
        if len(set(values)) < 2:
            continue
        words = [] if all(map(_is_number, values)) else list(dict.fromkeys(map(str, values)))
        points = [
            (
                float(words.index(str(value)) if words else value),  # type: ignore[arg-type]
                trial.figures[first],
                f"{_says(trial, first)}, {name} {_cell(value)}",
            )
            for value, trial in zip(values, shown, strict=True)
        ]
        yield draw(name, [Series("", "s-0", points)], x_label="", y_label=first, caption="", names=words)


def _importances(study: Study, trials: Sequence[Trial]) -> dict[str, float]:
    """How much of the variance of the first objective each name explains (fANOVA, Hutter et al., ICML 2014)."""
    search = Search("search", study.space(), study.objectives, Budget(0))
    search.recall([trial for trial in trials if trial.phase == "search"])
    try:
        shares: dict[str, float] = optuna.importance.get_param_importances(
            search.optuna_study,
            target=(lambda trial: trial.values[0]) if len(study.objectives) > 1 else None,
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
        )
    except (ValueError, RuntimeError, ZeroDivisionError):
        return {}  # too few trials that ran to their end, or all the same
    return shares if all(map(math.isfinite, shares.values())) else {}


def front_of(study: Study, trials: Sequence[Trial]) -> list[Trial]:
    """The Pareto front: finished trials than which no other is at least as good in all objectives and better in one."""
    whole = [trial for trial in trials if trial.state is State.FINISHED]

    def worths(trial: Trial) -> np.ndarray:
        return np.array([as_maximisation(goal, trial.figures[name]) for name, goal in study.objectives.items()])

    return [
        trial
        for trial in whole
        if not any((worths(other) >= worths(trial)).all() and (worths(other) > worths(trial)).any() for other in whole)
    ]


def _fronts(study: Study, trials: Sequence[Trial]) -> Iterator[Plot]:
    """The front, the first objective against each of the others."""
    first, *others = study.objectives
    whole = [trial for trial in trials if trial.state is State.FINISHED]
    if not whole:
        return
    front = front_of(study, trials)
    for other in others:

        def points(group: Sequence[Trial], other: str = other) -> list[tuple[float, float, str]]:
            return [(t.figures[other], t.figures[first], f"{_says(t, first)}, {_says(t, other)}") for t in group]

        yield draw(
            f"Pareto front, {first} against {other}",
            [Series("other trials", "s-none", points([t for t in whole if t not in front])),
             Series("Pareto front", "s-1", points(front))],
            x_label=other,
            y_label=first,
            caption=f"{len(front)} of {len(whole)} trials are on the front",
        )  # fmt: skip


def _curves(trials: Sequence[Trial]) -> Iterator[Plot]:
    """A drawing for each attack and axis, a line a rule."""
    curves = curves_of(trials)
    for attack, axis in dict.fromkeys((curve.attack, curve.axis) for curve in curves):
        series = [
            Series(
                curve.rule,
                style_of(place),
                [
                    (x, y, f"{curve.rule}, {NAMES[axis]} {x:g}: accuracy {number(y)}")
                    for x, y in zip(curve.places, curve.accuracies, strict=True)
                ],
                "line",
            )
            for place, curve in enumerate(one for one in curves if (one.attack, one.axis) == (attack, axis))
        ]
        yield draw(
            f"{attack}: accuracy against {NAMES[axis]}",
            series,
            x_label=NAMES[axis],
            y_label="accuracy",
            caption="On test scans, a line a rule",
        )


def _trace(trials: Sequence[Trial]) -> Iterator[Plot]:
    """The duel, turn by turn."""
    turns = [
        trial for trial in trials if (trial.phase == "test" and "turn" in trial.title) or trial.label == "the beginning"
    ]
    turns = [trial for trial in turns if "accuracy" in trial.figures]
    if len(turns) < 2:
        return
    points = [(place, trial.figures["accuracy"], _says(trial, "accuracy")) for place, trial in enumerate(turns)]
    yield draw(
        "The duel",
        [Series("", "s-0", points, "line")],
        x_label="",
        y_label="accuracy on test scans",
        caption="Accuracy of every turn's pair of attack and defence on test scans",
        names=[trial.title for trial in turns],
    )


def _says(trial: Trial, figure: str) -> str:
    return f"{trial.title}: {figure} {number(trial.figures[figure])}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    return "–" if value is None else number(value) if isinstance(value, float) else str(value)
