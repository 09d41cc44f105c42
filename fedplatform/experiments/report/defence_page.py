"""The page of an evaluation: what is left of a run's defence under attack."""

from __future__ import annotations

import base64
from dataclasses import dataclass, fields
from pathlib import Path

from fedplatform.core.template import load_template
from fedplatform.experiments.report.defence_charts import draw_accuracy, draw_detector
from fedplatform.experiments.report.defence_grid import defence_grids
from fedplatform.experiments.report.defence_headline import Minimum, defence_headline, minima
from fedplatform.experiments.report.defence_pictures import Story, brightest, tell
from fedplatform.experiments.report.finished_evaluation import FILE, FinishedEvaluation, read_evaluation
from fedplatform.experiments.report.threat_wording import (
    TIERS,
    defence_words,
    epsilon_words,
    in_order,
    tier_meaning,
)

FOREMOST = 2  # stories on the page of the run itself


@dataclass(frozen=True)
class UnderAttack:
    """The heart of an evaluation, for the page of its run."""

    headline: str
    minima: list[Minimum]
    stories: list[Story]
    tier: str  # of the stories
    strength: str


@dataclass(frozen=True)
class _Cost:
    """What a defence does to clean or to attacked scans, and what that takes; shares from 0 to 1."""

    name: str
    strength: str  # epsilon in words, or clean
    flagged: float
    purified: float
    abstained: float
    wrong: float
    evaluations: float
    milliseconds: float


def write_defence_report(folder: Path) -> Path:
    """Write ``evaluation.html`` into an evaluated run folder, one page that needs no other file; returns its path.

    Reads evaluation.parquet, scans.parquet, evaluation.yaml and, where it is there, pictures.npz. Raises
    :class:`ReportError` where one is missing or would mislead.
    """
    evaluation = read_evaluation(folder)
    cells, pictures = evaluation.cells, evaluation.pictures
    grids = defence_grids(cells)
    csv = base64.b64encode(cells.to_csv(index=False).encode()).decode()
    accuracy = draw_accuracy(grids)
    page = load_template("defence.html", "fedplatform.experiments.report").render(
        name=folder.resolve().name,
        headline=defence_headline(grids),
        minima=minima(grids),
        grids=grids,
        meanings={tier: tier_meaning(tier) for tier in in_order([*TIERS, *cells["tier"]])},
        accuracy=accuracy,
        legend={curve.label: curve.style for plot in accuracy for curve in plot.curves},
        detector=draw_detector(evaluation.scans),
        costs=_costs(evaluation),
        stories=tell(pictures) if pictures else [],
        pictures=pictures,
        brightest=brightest(pictures) if pictures else 0.0,
        budget=evaluation.budget,
        seeds=", ".join(str(seed) for seed in sorted(cells["seed"].unique())),
        cells=cells.to_dict("records"),
        csv=f"data:text/csv;charset=utf-8;base64,{csv}",
        defence_words=defence_words,
        epsilon_words=epsilon_words,
    )
    path = folder / "evaluation.html"
    path.write_text(page, encoding="utf-8")
    return path


def under_attack(folder: Path) -> UnderAttack | None:
    """What the page of a run says of its evaluation; None where the run was not evaluated."""
    if not (folder / FILE).is_file():
        return None
    evaluation = read_evaluation(folder)
    grids = defence_grids(evaluation.cells)
    pictures = evaluation.pictures
    return UnderAttack(
        headline=defence_headline(grids),
        minima=minima(grids),
        stories=tell(pictures)[:FOREMOST] if pictures else [],
        tier=pictures.tier if pictures else "",
        strength=epsilon_words(pictures.epsilon) if pictures else "",
    )


def _costs(evaluation: FinishedEvaluation) -> list[_Cost]:
    """For each defence on clean scans and at each epsilon, the mean over tiers and seeds."""
    kinds = ["defence", "adversarial_training", "epsilon"]
    means = [field.name for field in fields(_Cost) if field.type == "float"]
    purified = evaluation.scans.assign(purified=evaluation.scans["depth"] > 0).groupby([*kinds, "tier", "seed"])
    cells = evaluation.cells.merge(purified["purified"].mean().reset_index(), how="left")
    costs: dict[str, list[_Cost]] = {}
    for (defence, adversarial, _), own in cells.groupby(kinds, sort=False):
        name = defence_words(str(defence), adversarial_training=bool(adversarial))
        strength = float(own["epsilon"].iloc[0])
        said = epsilon_words(strength) if strength else "clean"
        costs.setdefault(name, []).append(_Cost(name, said, **{mean: float(own[mean].mean()) for mean in means}))
    return [cost for own in costs.values() for cost in own]
