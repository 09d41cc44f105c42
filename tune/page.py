"""The page of a study."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedplatform.core.template import load_template
from fedplatform.core.wording import number
from tune.curve import NAMES, Curve, breakdowns, curves_of
from tune.phase import Budget, Search
from tune.study import Study, turned
from tune.trial import Choice, State, Trial

COLOURS = ("#0072b2", "#b35900", "#00694e", "#9b2d86", "#55606b", "#b3261e", "#3b3b98", "#7a6a00")  # distinct to all
MARKS = {State.FINISHED: "o", State.STOPPED: "x", State.FAILED: "v"}
SHOWN = 40


@dataclass(frozen=True)
class Picture:
    """A drawing as it stands in the page, and in words."""

    title: str
    source: str
    says: str


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
        counts={str(state): sum(trial.state is state for trial in searched) for state in MARKS},
        breakdowns=breakdowns(trials),
        pictures=pictures_of(study, trials, searched),
        files=[place.name for place in sorted(folder.glob("*.yaml")) if place.name != "study.yaml"],
        minutes=sum(trial.seconds for trial in trials) / 60,
        said=_said,
        command=f"fedplatform run {folder / 'winner.yaml'}",
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def pictures_of(study: Study, trials: Sequence[Trial], searched: Sequence[Trial]) -> list[Picture]:
    """Every drawing for which there are figures."""
    found = [_history(study, searched), _slices(study, searched), _importances(study, searched)]
    return [picture for picture in [*found, *_fronts(study, searched), *draw_curves(trials), _trace(trials)] if picture]


def _history(study: Study, trials: Sequence[Trial]) -> Picture | None:
    """Every trial in the order of time, and the best so far."""
    shown = [trial for trial in trials if trial.figures]
    if not shown:
        return None
    first, goal = next(iter(study.objectives.items()))

    def draw(axes: Axes) -> None:
        for state, mark in MARKS.items():
            places = [(n, t.figures[first]) for n, t in enumerate(shown) if t.state is state and first in t.figures]
            if places:
                numbers, values = zip(*places, strict=True)
                axes.scatter(numbers, values, marker=mark, color=COLOURS[0], label=str(state), s=26)
        whole = [(n, t.figures[first]) for n, t in enumerate(shown) if t.state is State.FINISHED]
        if whole and len({trial.phase for trial in shown}) == 1:
            numbers, values = zip(*whole, strict=True)
            so_far = (np.maximum if goal == "max" else np.minimum).accumulate(values)
            axes.step(numbers, so_far, where="post", color=COLOURS[1], label="best so far")
        axes.set(xlabel="trial", ylabel=first)
        axes.legend()

    return _picture("Search", draw, f"{first} on validation scans, trial by trial")


def _slices(study: Study, trials: Sequence[Trial]) -> Picture | None:
    """The first objective against every name of the space."""
    shown = [trial for trial in trials if trial.state is State.FINISHED]
    first = next(iter(study.objectives))
    names = [name for name in study.space() if len({trial.choice.get(name) for trial in shown}) > 1]
    if len(shown) < 2 or not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.6 * rows), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(rows, columns)).ravel(), names, strict=False):
        values = [trial.choice.get(name) for trial in shown]
        figures = [trial.figures.get(first, math.nan) for trial in shown]
        axes.scatter(
            values if _is_number(values) else [str(value) for value in values], figures, s=18, color=COLOURS[0]
        )
        axes.set(xlabel=name, ylabel=first)
        axes.tick_params(axis="x", labelrotation=0 if _is_number(values) else 60)
    for axes in figure.axes[len(names) :]:
        axes.set_axis_off()
    return _drawn("Slices", figure, f"{first} against each of {', '.join(names)}; trials that ran to their end")


def _importances(study: Study, trials: Sequence[Trial]) -> Picture | None:
    """How much of the variance of the first objective each name explains (fANOVA, Hutter et al., ICML 2014)."""
    shown = [trial for trial in trials if trial.phase == "search"]
    search = Search("search", study.space(), study.objectives, Budget(0))
    search.recall(shown)
    first = next(iter(study.objectives))
    try:
        shares = optuna.importance.get_param_importances(
            search.optuna_study,
            target=(lambda trial: trial.values[0]) if len(study.objectives) > 1 else None,
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
        )
    except (ValueError, RuntimeError, ZeroDivisionError):
        return None  # too few trials that ran to their end, or all the same
    if not shares or not all(map(math.isfinite, shares.values())):
        return None

    def draw(axes: Axes) -> None:
        names = list(shares)[::-1]
        axes.barh(names, [shares[name] for name in names], color=COLOURS[0])
        axes.set(xlabel=f"share of the variance of {first}", xlim=(0, 1))

    said = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    return _picture("What matters", draw, f"Importance (fANOVA) for {first}: {said}")


def front_of(study: Study, trials: Sequence[Trial]) -> list[Trial]:
    """The Pareto front: finished trials than which no other is at least as good in all objectives and better in one."""
    whole = [trial for trial in trials if trial.state is State.FINISHED]

    def worths(trial: Trial) -> np.ndarray:
        return np.array([turned(goal, trial.figures[name]) for name, goal in study.objectives.items()])

    return [
        trial
        for trial in whole
        if not any((worths(other) >= worths(trial)).all() and (worths(other) > worths(trial)).any() for other in whole)
    ]


def _fronts(study: Study, trials: Sequence[Trial]) -> list[Picture]:
    """The front, the first objective against each of the others."""
    names = list(study.objectives)
    whole = [trial for trial in trials if trial.state is State.FINISHED]
    if len(names) < 2 or not whole:
        return []
    front = front_of(study, trials)

    def against(other: str) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            for group, style in (
                (whole, {"color": "#9aa4ad"}),
                (front, {"color": COLOURS[1], "label": "Pareto front"}),
            ):
                axes.scatter([t.figures[other] for t in group], [t.figures[names[0]] for t in group], s=26, **style)  # type: ignore[arg-type]
            axes.set(xlabel=other, ylabel=names[0])
            axes.legend()

        return draw

    return [
        _picture(
            f"Pareto front, {names[0]} against {other}",
            against(other),
            f"{len(front)} of {len(whole)} trials are on the front",
        )
        for other in names[1:]
    ]


def draw_curves(trials: Sequence[Trial]) -> list[Picture]:
    """A drawing for each attack and axis, a line a rule."""
    curves = curves_of(trials)
    pictures = []
    for attack, axis in dict.fromkeys((curve.attack, curve.axis) for curve in curves):
        mine = [curve for curve in curves if (curve.attack, curve.axis) == (attack, axis)]

        def draw(axes: Axes, mine: Sequence[Curve] = mine) -> None:
            draw_lines(axes, mine)

        pictures.append(_picture(f"{attack}: accuracy against {NAMES[axis]}", draw, "On test scans, a line a rule"))
    return pictures


def draw_lines(axes: Axes, curves: Sequence[Curve]) -> None:
    """Curves against one axis, as they stand in the page and in the docs."""
    for line, curve in enumerate(curves):
        style = {"marker": "os^DvP*X"[line % 8], "color": COLOURS[line % len(COLOURS)]}
        axes.plot(curve.places, curve.accuracies, label=curve.rule, markersize=5, **style)  # type: ignore[arg-type]
    axes.set(xlabel=NAMES[curves[0].axis], ylabel="accuracy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _trace(trials: Sequence[Trial]) -> Picture | None:
    """The duel, turn by turn."""
    turns = [
        trial for trial in trials if (trial.phase == "test" and "turn" in trial.title) or trial.label == "the beginning"
    ]
    turns = [trial for trial in turns if "accuracy" in trial.figures]
    if len(turns) < 2:
        return None

    def draw(axes: Axes) -> None:
        accuracies = [trial.figures["accuracy"] for trial in turns]
        axes.plot(range(len(turns)), accuracies, marker="o", color=COLOURS[0])
        axes.set(ylabel="accuracy on test scans")
        axes.set_xticks(range(len(turns)), [trial.title for trial in turns], rotation=30, ha="right")

    return _picture("The duel", draw, "Every turn's pair of attack and defence on test scans")


def _picture(title: str, draw: Callable[[Axes], None], says: str) -> Picture:
    figure = Figure(figsize=(6.2, 3.9), layout="constrained")
    draw(figure.subplots())
    return _drawn(title, figure, says)


def _drawn(title: str, figure: Figure, says: str) -> Picture:
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return Picture(title, f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}", says)


def _is_number(values: Sequence[object]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _said(value: object) -> str:
    return "–" if value is None else number(value) if isinstance(value, float) else str(value)
