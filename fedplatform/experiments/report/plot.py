"""A chart as it stands in a page: curves and dots in SVG user units, each dot with its words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

COLOURS, DASHES = 4, 4  # that plot.css tells apart


@dataclass(frozen=True)
class Curve:
    """One curve as drawn: an SVG path and the (x, y, what it says) of its dots, of this radius.

    ``key`` is its entry in the legend, which curves may share; without one it is the label.
    """

    label: str
    style: str  # CSS classes
    path: str
    dots: tuple[tuple[float, float, str], ...]
    key: str = ""
    radius: float = 3.2


@dataclass(frozen=True)
class Plot:
    """A chart in SVG user units, the origin at the top left."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    caption: str = ""
    slants: bool = False  # words below the axis are too long to stand side by side
    width: int = 340
    height: int = 240
    left: int = 44
    right: int = 320
    top: int = 12
    bottom: int = 198

    @property
    def legend(self) -> dict[str, Curve]:
        """A curve for each entry; one without a name has none."""
        return {curve.key or curve.label: curve for curve in self.curves if curve.key or curve.label}

    @property
    def summary(self) -> str:
        """The caption, or all that its dots say."""
        return self.caption or "; ".join(text for curve in self.curves for _, _, text in curve.dots)


@dataclass(frozen=True)
class Series:
    """Points before they are drawn: (x, y, what each says), those that are not finite left out."""

    label: str
    style: str
    points: Sequence[tuple[float, float, str]]
    joined: Literal["no", "line", "step"] = "no"

    @property
    def finite(self) -> list[tuple[float, float, str]]:
        """The points that have a place."""
        return [(x, y, text) for x, y, text in self.points if math.isfinite(x) and math.isfinite(y)]


def style_of(number: int) -> str:
    """CSS classes for the n-th of several curves: first the colours, then the dashes."""
    return f"s-{number % COLOURS} dash-{number // COLOURS % DASHES}"


def draw(
    title: str, series: Sequence[Series], *, x_label: str, y_label: str, caption: str, names: Sequence[str] = ()
) -> Plot:
    """A chart of some points; ``names`` are what x = 0, 1, ... are called where it is no number."""
    points = [point for one in series for point in one.finite]
    y_ticks = ticks(min(y for _, y, _ in points), max(y for _, y, _ in points))
    x_ticks = [] if names else ticks(min(x for x, _, _ in points), max(x for x, _, _ in points))
    first, last = (x_ticks[0], x_ticks[-1]) if x_ticks else (-0.5, len(names) - 0.5)
    x_of = scale(first, last, Plot.left, Plot.right)
    y_of = scale(y_ticks[0], y_ticks[-1], Plot.bottom, Plot.top)
    curves = []
    for one in series:
        dots = tuple((x_of(x), y_of(y), text) for x, y, text in one.finite)
        path = path_through(dots, how=one.joined)
        curves.append(Curve(one.label, one.style, path, () if one.joined == "step" else dots))
    slants = sum(map(len, names)) > 40
    return Plot(
        title,
        x_label,
        y_label,
        tuple(curves),
        tuple((x_of(place), name) for place, name in enumerate(names)) or tuple((x_of(x), f"{x:g}") for x in x_ticks),
        tuple((y_of(y), f"{y:g}") for y in y_ticks),
        caption=caption,
        slants=slants,
        height=310 if slants else Plot.height,
    )


def scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    """Where a value from ``low`` to ``high`` stands between ``first`` and ``last``."""
    return lambda value: round(first + (value - low) / (high - low) * (last - first), 1)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose [low, high], about five of them."""
    if high == low:
        low, high = low - 0.5, high + 0.5
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = power * next(factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 5)
    # Six digits are kept so that 0.7 / 0.1 does not open another step beyond the data.
    first, last = math.floor(round(low / step, 6)), math.ceil(round(high / step, 6))
    return [round(step * index, 12) for index in range(first, last + 1)]


def path_through(points: Sequence[tuple[float, float, str]], *, how: Literal["no", "line", "step"] = "line") -> str:
    """An SVG path through points, in straight lines or in steps; "" where they are not joined, or there is none."""
    if how == "no" or not points:
        return ""
    (x, y, _), *others = points
    return f"M{x:g} {y:g}" + "".join(f"H{x:g}V{y:g}" if how == "step" else f"L{x:g} {y:g}" for x, y, _ in others)
