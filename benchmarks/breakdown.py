"""Where rules break down: `python -m benchmarks.breakdown` writes docs/results/breakdown.csv and the picture of it.

The study `breakdown` on the embedded data: four rules under sign flipping, ever stronger by 3 of 10 hospitals, and at
its usual strength by 0 to 4 of 10. What is done is not done again.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tune.breakdown import Breakdown
from tune.curve import NAMES, Curve, curves_of
from tune.phase import Budget
from tune.result import table_of
from tune.runner import run
from tune.studies import describe_study
from tune.trial import Trial

DOCS = Path(__file__).parents[1] / "docs"
STUDY = Breakdown(rules=("mean", "median", "trimmed_mean", "trust"), attacks=("sign_flip",))
COLUMNS = ["rule", "attack", "strength", "byzantine", "seed", "accuracy", "macro_f1"]


def main() -> None:
    folder = Path("runs/benchmark-breakdown")
    publish(list(run(STUDY, Budget(1), folder=folder, name=describe_study(STUDY))))


def publish(trials: list[Trial]) -> None:
    cells = [trial for trial in trials if trial.figures]
    table_of(cells)[COLUMNS].round(4).to_csv(DOCS / "results/breakdown.csv", index=False)
    curves = curves_of(cells)
    axes_there = list(dict.fromkeys(curve.axis for curve in curves))
    figure = Figure(figsize=(5.4 * len(axes_there), 3.8), layout="constrained")
    for place, axis in zip(figure.subplots(1, len(axes_there), squeeze=False)[0], axes_there, strict=True):
        draw_lines(place, [curve for curve in curves if curve.axis == axis])
    figure.suptitle("Sign flipping by attackers among ten hospitals: test scans, one seed", fontsize=10)
    figure.savefig(DOCS / "pictures/breakdown.png", dpi=110)


def draw_lines(axes: Axes, curves: list[Curve]) -> None:
    for curve, mark in zip(curves, "os^D", strict=True):
        axes.plot(curve.places, curve.accuracies, label=curve.rule, marker=mark, markersize=5)
    axes.set(xlabel=NAMES[curves[0].axis], ylabel="accuracy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    main()
