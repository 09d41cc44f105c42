"""Every hospital's model on every hospital's test scans, as two drawings and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedplatform.core.wording import percent, shorten
from fedplatform.experiments.report.frame import CROWD, Frame

TITLES = {"auc": "AUC", "balanced_accuracy": "Balanced accuracy"}
ROOM = 400  # for the cells of a row
LETTER = 7.2  # wider than almost every letter at 12 px


@dataclass(frozen=True)
class SiteCell:
    """One model on the test scans of one site."""

    x: int
    y: int
    shade: float  # 0 at chance and below, 1 where all is right
    text: str  # percent without its sign, "" where the cell is too narrow
    is_own: bool
    title: str


@dataclass(frozen=True)
class SiteMatrix:
    """One figure of every model (rows) on the test scans of every site (columns)."""

    title: str
    frame: Frame
    cells: tuple[SiteCell, ...]
    least: float  # what is not shaded at all


@dataclass(frozen=True)
class ModelRow:
    """One model: its figures on its own test scans, on average on the others', and where that is lowest."""

    name: str
    auc: tuple[float, float]
    balanced_accuracy: tuple[float, float]
    lowest: str


@dataclass(frozen=True)
class CrossSite:
    """The section of the page, without ``rows`` for one model of all; ``scans`` are the fewest and most at a site."""

    maps: tuple[SiteMatrix, ...]
    rows: tuple[ModelRow, ...]
    summary: str
    empty: tuple[str, ...]  # sites without a figure
    scans: tuple[int, int]

    @property
    def is_shared(self) -> bool:
        """Whether nothing stays in a hospital, so that there is one model."""
        return not self.rows


def draw_cross_site(table: pd.DataFrame, *, num_classes: int) -> CrossSite:
    """Lay out the table of :func:`fedplatform.experiments.cross_site.cross_site`."""
    figures = {name: table[name].unstack(sort=False) for name in TITLES}
    models, sites = list(figures["auc"].index), list(figures["auc"].columns)
    frame, told = _frame(models, sites)
    least = {"auc": 0.5, "balanced_accuracy": 1 / max(num_classes, 1)}
    maps = tuple(
        SiteMatrix(title, frame, _cells(figures[name], frame, title, least=least[name], told=told), least[name])
        for name, title in TITLES.items()
    )
    unknown = figures["auc"].isna() & figures["balanced_accuracy"].isna()
    empty = tuple(site for site in sites if unknown[site].all())
    scans = int(table["scans"].min()), int(table["scans"].max())
    if models != sites:
        return CrossSite(maps, (), "", empty, scans)
    rows = tuple(_row(place, figures) for place in range(len(models)))
    return CrossSite(maps, rows, _summary(rows, figures["auc"]), empty, scans)


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the words that all begin with: ``00`` and ``01`` of ``hospital-00`` and ``hospital-01``."""
    words = [name.split("-") for name in names]
    common = 0
    while len(names) > 1 and all(len(each) > common + 1 and each[common] == words[0][common] for each in words):
        common += 1
    return ["-".join(each[common:]) for each in words]


def _frame(models: Sequence[str], sites: Sequence[str]) -> tuple[Frame, bool]:
    """Where each cell stands, and whether a figure fits into it. Long names of sites are numbered like their rows."""
    width = min(46, max(16, ROOM // len(sites)))
    height = 30 if len(models) <= CROWD else 18
    ticks, labels = short_names(sites), [shorten(name) for name in models]
    if max(map(len, ticks)) * LETTER > width and list(models) == list(sites):
        ticks = [str(place) for place in range(1, len(sites) + 1)]
        labels = [f"{name} · {place}" for name, place in zip(labels, ticks, strict=True)]
    columns = {place: place * width for place in range(len(sites))}
    frame = Frame(
        labels=tuple((label, False) for label in labels),
        label_width=16 + LETTER * max(map(len, labels)),
        columns=columns,
        x_ticks=tuple((columns[place] + width / 2, tick) for place, tick in enumerate(ticks)),
        cell_width=width,
        cell_height=height,
        width=width * len(sites),
        height=height * len(models),
    )
    return frame, width >= 26


def _cells(figures: pd.DataFrame, frame: Frame, title: str, *, least: float, told: bool) -> tuple[SiteCell, ...]:
    cells, values = [], figures.to_numpy(float)
    for row, model in enumerate(figures.index):
        for column, site in enumerate(figures.columns):
            value = float(values[row, column])
            known = not math.isnan(value)
            says = percent(value) if known else "no figure, this site lacks a class among its test scans"
            cells.append(
                SiteCell(
                    x=frame.columns[column],
                    y=row * frame.cell_height,
                    shade=round(min(1.0, max(0.0, (value - least) / (1 - least))), 2) if known else 0.0,
                    text=(f"{100 * value:.0f}" if known else "–") if told else "",
                    is_own=model == site,
                    title=f"Model of {model} at {site}: {title} {says}",
                )
            )
    return tuple(cells)


def _row(place: int, figures: dict[str, pd.DataFrame]) -> ModelRow:
    names = list(figures["auc"].columns)

    def own_and_others(figure: str) -> tuple[float, float]:
        values = figures[figure].to_numpy(float)[place]
        others = np.delete(values, place)
        known = others[~np.isnan(others)]
        return float(values[place]), float(known.mean()) if len(known) else math.nan

    others = figures["auc"].to_numpy(float)[place].copy()
    others[place] = np.nan
    least = None if np.isnan(others).all() else int(np.nanargmin(others))
    lowest = "–" if least is None else f"{names[least]}, {percent(float(others[least]))}"
    return ModelRow(names[place], own_and_others("auc"), own_and_others("balanced_accuracy"), lowest)


def _summary(rows: Sequence[ModelRow], aucs: pd.DataFrame) -> str:
    """What the models lose away from home, in words."""
    both = np.array([row.auc for row in rows if not any(map(math.isnan, row.auc))])
    if not len(both):
        return "No hospital's model has an AUC both at its own site and at another."
    own, others = both.mean(axis=0)
    change = 100 * (others - own)
    words = f"{'loses' if change < 0 else 'gains'} {abs(change):.1f} points of AUC"
    elsewhere = aucs.to_numpy(float).copy()
    np.fill_diagonal(elsewhere, np.nan)
    row, column = map(int, np.unravel_index(np.nanargmin(elsewhere), elsewhere.shape))
    return (
        f"Away from home a hospital's model {words} on average: {percent(own)} on its own test scans, "
        f"{percent(others)} on the others'. The lowest is {aucs.index[row]}'s at {aucs.columns[column]}, "
        f"{percent(float(elsewhere[row, column]))}."
    )
