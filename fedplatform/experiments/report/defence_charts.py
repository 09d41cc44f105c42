"""The curves of an evaluation: accuracy against epsilon, and how well the detector tells attacked from clean scans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score, roc_curve

from fedplatform.core import wording
from fedplatform.experiments.report.defence_grid import DefenceGrid
from fedplatform.experiments.report.plot import DASHES, Curve, Plot, path_through
from fedplatform.experiments.report.threat_wording import (
    CLEAN,
    DEFENCES,
    defence_words,
    epsilon_words,
    in_order,
    tier_words,
)

DefenceKey = tuple[str, bool]  # its name, and whether its classifier was adversarially trained
STEP = 1 / 255  # of an 8-bit picture


def draw_accuracy(grids: Sequence[DefenceGrid]) -> list[Plot]:
    """A panel for each tier, a line for each defence, from clean scans at epsilon 0 upwards; all of one data set."""
    tiers = [tier for tier in in_order(tier for grid in grids for tier in grid.tiers) if tier != CLEAN]
    longest = max(grid.epsilon for grid in grids)  # above 0 wherever there is a tier
    return [_accuracy(tier, grids, longest) for tier in tiers]


def _accuracy(tier: str, grids: Sequence[DefenceGrid], longest: float) -> Plot:
    points: dict[DefenceKey, dict[float, tuple[float, float, str]]] = {}
    for grid in grids:
        for row in grid.rows:
            for cell in row.cells:
                if cell and cell.tier in (CLEAN, tier):
                    epsilon, strength = (
                        (0.0, "clean") if cell.tier == CLEAN else (grid.epsilon, f"epsilon {grid.strength}")
                    )
                    low, high = (wording.percent(end) for end in cell.interval)
                    text = f"{row.name}, {strength}: {wording.percent(cell.accuracy)} ({low} to {high}, n = {cell.n})"
                    dot = (_x(epsilon / longest), _y(cell.accuracy), text)
                    points.setdefault((row.defence, row.adversarial_training), {})[epsilon] = dot
    curves = []
    for key in sorted(points, key=_depth):
        if set(points[key]) != {0.0}:  # else this defence never met this attacker
            dots = tuple(points[key][epsilon] for epsilon in sorted(points[key]))
            curves.append(Curve(_name(key), _style(key), path_through(dots), dots))
    spacing = next(step for step in (1, 2, 4, 8, 16, 32, 64) if longest / STEP <= 5 * step)
    ticks = [step for step in range(0, 256, spacing) if step <= longest / STEP + 1e-3]
    return Plot(
        title=tier_words(tier),
        x_label="epsilon in 1/255 of the pixel range",
        y_label="accuracy",
        curves=tuple(curves),
        x_ticks=tuple((_x(tick * STEP / longest), str(tick)) for tick in ticks),
        y_ticks=_percents(),
    )


def draw_detector(scans: pd.DataFrame) -> list[Plot]:
    """A ROC curve for each tier, defence with a detector and epsilon: clean scans against attacked ones.

    ``scans`` has the columns of scans.parquet; hospitals and seeds are pooled. A dot is where the hospitals' own
    thresholds stand; as each has its own, it may lie off the pooled curve.
    """
    scored = scans[np.isfinite(scans["score"].astype(float))]
    epsilons = sorted(scored.loc[scored["tier"] != CLEAN, "epsilon"].unique(), reverse=True)
    plots = []
    for tier in (tier for tier in in_order(map(str, scored["tier"])) if tier != CLEAN):
        curves = []
        for (defence, adversarial), own in scored.groupby(["defence", "adversarial_training"], sort=False):
            key = (str(defence), bool(adversarial))
            clean = own[own["tier"] == CLEAN]
            for dash, epsilon in enumerate(epsilons):
                attacked = own[(own["tier"] == tier) & (own["epsilon"] == epsilon)]
                if len(clean) and len(attacked):
                    name = f"{_name(key)}, {epsilon_words(epsilon)}"
                    curves.append(_roc(name, f"{_style(key)} dash-{dash % DASHES}", clean, attacked))
        if curves:
            chance = Curve("", "chance", f"M{_x(0):g} {_y(0):g}L{_x(1):g} {_y(1):g}", ())
            plots.append(
                Plot(
                    title=tier_words(tier),
                    x_label="clean scans flagged",
                    y_label="attacked scans flagged",
                    curves=(chance, *curves),
                    x_ticks=tuple((_x(tick / 4), f"{25 * tick}%") for tick in range(5)),
                    y_ticks=_percents(),
                )
            )
    return plots


def _roc(name: str, style: str, clean: pd.DataFrame, attacked: pd.DataFrame) -> Curve:
    truth = np.r_[np.zeros(len(clean)), np.ones(len(attacked))]
    scores = np.r_[clean["score"], attacked["score"]]
    alarms, caught, _ = roc_curve(truth, scores)
    path = path_through([(_x(one), _y(other), "") for one, other in zip(alarms, caught, strict=True)])
    false, true = float(clean["flagged"].mean()), float(attacked["flagged"].mean())
    text = (
        f"{name}: AUC {roc_auc_score(truth, scores):.3f}, catches {wording.percent(true)} "
        f"at {wording.percent(false)} false alarms"
    )
    return Curve(text, style, path, ((_x(false), _y(true), text),))


def _name(key: DefenceKey) -> str:
    return defence_words(key[0], adversarial_training=key[1])


def _style(key: DefenceKey) -> str:
    defence, is_hardened = key
    known = defence.replace("_", "-") if defence in DEFENCES else "other"
    return f"d-{known}{' hollow' if is_hardened else ''}"


def _depth(key: DefenceKey) -> int:
    """Curves are drawn from the lowest to the highest; one unknown here lies below all others."""
    return list(DEFENCES).index(key[0]) if key[0] in DEFENCES else -1


def _x(share: float) -> float:
    return round(Plot.left + float(share) * (Plot.right - Plot.left), 1)


def _y(share: float) -> float:
    return round(Plot.bottom - float(share) * (Plot.bottom - Plot.top), 1)


def _percents() -> tuple[tuple[float, str], ...]:
    return tuple((_y(tick / 4), f"{25 * tick}%") for tick in range(5))
