"""Breakdown curves: accuracy against the strength of an attack or the number of attackers, a line a rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from tune.trial import Trial

CHANCE = 0.5  # of the data sets that the studies come with: two classes
NAMES = {"strength": "strength", "byzantine": "Byzantine hospitals"}
AXES = {"strength": " at ", "byzantine": " by "}  # what a curve is drawn against, and how its cells are labelled


@dataclass(frozen=True)
class Curve:
    """A rule under an attack, against ``axis``: means over seeds at each of ``places``."""

    rule: str
    attack: str
    axis: str
    places: tuple[float, ...]
    accuracies: tuple[float, ...]

    @property
    def breaks_at(self) -> float:
        """The first place at which less than half of what the rule can do over chance is left; NaN where there is none.

        What it can do is its highest accuracy on the curve.
        """
        half = (max(self.accuracies) + CHANCE) / 2
        return next((x for x, y in zip(self.places, self.accuracies, strict=True) if y < half), math.nan)


def curves_of(trials: Sequence[Trial]) -> list[Curve]:
    """All curves that the cells of a study make."""
    curves = []
    for axis, sign in AXES.items():
        cells = [t for t in trials if t.phase == "curve" and sign in t.label and "accuracy" in t.figures]
        frame = pd.DataFrame(
            [
                {
                    "rule": trial.choice["rule"],
                    # A cell without attackers has no attack, and belongs to the attack that its label names.
                    "attack": trial.label.partition(", ")[2].rpartition(sign)[0],
                    "place": float(trial.choice[axis]),
                    "accuracy": trial.figures["accuracy"],
                }
                for trial in cells
            ],
            columns=["rule", "attack", "place", "accuracy"],
        )
        for (rule, attack), line in frame.groupby(["rule", "attack"], sort=False):
            means = line.groupby("place")["accuracy"].mean()
            curves.append(Curve(str(rule), str(attack), axis, tuple(means.index), tuple(means)))
    return curves


def breakdowns(trials: Sequence[Trial]) -> Mapping[str, str]:
    """Where each rule breaks down, in words, by rule, attack and axis."""
    return {
        f"{curve.rule} under {curve.attack}, against {NAMES[curve.axis]}": f"breaks down at {curve.breaks_at:g}"
        if math.isfinite(curve.breaks_at)
        else f"holds up to {curve.places[-1]:g}"
        for curve in curves_of(trials)
        if len(curve.places) > 1
    }
