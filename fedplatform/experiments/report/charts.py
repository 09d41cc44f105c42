"""The curves of a run: where each point, tick and label stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedplatform.core import wording
from fedplatform.experiments.report.finished_run import FinishedRun
from fedplatform.experiments.report.plot import Curve, Plot
from fedplatform.experiments.report.plot import ticks as even_ticks

RIGHT = 330  # of the axis: the number of a round is narrow
THIN = ("thin", "thin-attacker")  # a hospital's own line
Axis = Literal["percent", "unit", "open"]  # a share of 1 in percent; all from 0 to 1; upwards without end
MOST_ROUNDS_WITH_DOTS = 60
MOST_LARGE_DOTS = 25
MOST_DOTS = 1000  # of all thin lines; each weighs as much in the page as a cell of a table


@dataclass(frozen=True)
class Series:
    """One curve before it is drawn: a value a round, NaN where there is none."""

    label: str  # of this line
    key: str  # of its entry in the legend
    style: str  # CSS class
    values: tuple[float, ...]
    has_dots: bool  # whether each point says its value


def draw_charts(run: FinishedRun) -> list[Plot]:
    """Accuracy, the other two scores, and the loss, each over the rounds."""
    rounds = run.rounds
    numbers = [report.round_number for report in rounds]

    def pooled(field: str, label: str, style: str) -> Series:
        values = tuple(getattr(report, field) for report in rounds)
        return Series(label, label, style, values, has_dots=len(rounds) <= MOST_ROUNDS_WITH_DOTS)

    def chart(title: str, series: Sequence[Series], *, axis: Axis) -> Plot:
        main = series[-1]
        ends = [f"{_say(main.values[end], axis)} after round {numbers[end]}" for end in (0, -1)]
        summary = f"{main.label}: {', '.join(dict.fromkeys(ends))}."
        return _chart(title, series, numbers, axis=axis, summary=summary)

    accuracy = [
        *_every_hospital(run, "accuracy", has_dots=False),
        pooled("validation_accuracy", "Validation", "second"),
        pooled("accuracy", "Pooled test scans", "first"),
    ]
    scores = [pooled("auc", "AUC", "second"), pooled("macro_f1", "Macro-F1", "first")]
    success = [
        *_every_hospital(run, "attack_success", has_dots=False),
        pooled("attack_success", "Stamped test scans answered with the backdoor's target", "first"),
    ]
    backdoor = [chart("Attack success", success, axis="percent")] if math.isfinite(rounds[-1].attack_success) else []
    return [
        chart("Accuracy", accuracy, axis="percent"),
        chart("Macro-F1 and AUC", scores, axis="percent"),
        *backdoor,
        chart("Loss", [pooled("loss", "Cross-entropy of the pooled test scans", "first")], axis="open"),
    ]


def draw_trust(run: FinishedRun) -> list[Plot]:
    """Trust and reputation of every hospital over the rounds; none from a rule that scores nobody."""
    numbers = [report.round_number for report in run.rounds]
    has_dots = len(numbers) <= MOST_ROUNDS_WITH_DOTS and len(numbers) * len(run.hospitals) <= MOST_DOTS
    charts = []
    for field in ("trust", "reputation"):
        series = _every_hospital(run, field, has_dots=has_dots)
        if _finite(series):
            charts.append(_chart(field.title(), series, numbers, axis="unit", summary=_means(series, numbers)))
    return charts


def _every_hospital(run: FinishedRun, field: str, *, has_dots: bool) -> list[Series]:
    """A thin line for each hospital, the attackers' on top."""
    series = []
    for history in run.hospitals:
        own = {record.round_number: getattr(record, field) for record in history.records}
        key, style = (
            ("One Byzantine hospital", "thin-attacker") if history.is_byzantine else ("One honest hospital", "thin")
        )
        values = tuple(own.get(report.round_number, math.nan) for report in run.rounds)
        series.append(Series(history.hospital_id, key, style, values, has_dots=has_dots))
    return series


def _means(series: Sequence[Series], numbers: Sequence[int]) -> str:
    """Where honest hospitals and attackers stood in the last round that has figures."""
    last = max(place for one in series for place, value in enumerate(one.values) if math.isfinite(value))
    says = []
    for kind, style in (("honest hospitals", "thin"), ("Byzantine hospitals", "thin-attacker")):
        values = [one.values[last] for one in series if one.style == style and math.isfinite(one.values[last])]
        if values:
            says.append(f"{kind} {wording.number(sum(values) / len(values))}")
    return f"Mean after round {numbers[last]}: {', '.join(says)}."


def _chart(title: str, series: Sequence[Series], numbers: Sequence[int], *, axis: Axis, summary: str) -> Plot:
    name, finite = title, _finite(series)
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    logarithmic = axis == "open" and low > 0 and high > 30 * low
    if logarithmic:
        ticks = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
        title = f"{title} (logarithmic scale)"
    elif axis == "unit":
        ticks = even_ticks(0.0, 1.0)
    else:
        margin = 0.05 * max(1.0, abs(high)) if high == low else 0.0
        ticks = even_ticks(max(0.0, low - margin), high + margin if axis == "open" else min(1.0, high + margin))
    scale = math.log10 if logarithmic else float
    bottom, top = scale(ticks[0]), scale(ticks[-1])

    def x_of(number: int) -> float:
        share = (number - numbers[0]) / (numbers[-1] - numbers[0]) if len(numbers) > 1 else 0.5
        return round(Plot.left + share * (RIGHT - Plot.left), 1)

    def y_of(value: float) -> float:
        return round(Plot.bottom - (scale(value) - bottom) / (top - bottom) * (Plot.bottom - Plot.top), 1)

    curves = []
    for one in series:
        points = [
            (x_of(number), y_of(value), f"{one.label}, round {number}: {_say(value, axis)}")
            if math.isfinite(value)
            else None
            for number, value in zip(numbers, one.values, strict=True)
        ]
        has_dots = len(numbers) == 1 or one.has_dots
        dots = tuple(point for point in points if point and has_dots)
        radius = 2.0 if one.style in THIN or len(dots) > MOST_LARGE_DOTS else Curve.radius
        curves.append(Curve(one.label, one.style, _path(points), dots, key=one.key, radius=radius))
    return Plot(
        title=title,
        x_label="round",
        y_label=name,
        caption=summary,
        curves=tuple(curve for curve in curves if curve.path),
        right=RIGHT,
        x_ticks=tuple((x_of(number), str(number)) for number in _round_ticks(numbers)),
        y_ticks=tuple((y_of(tick), f"{100 * tick:g}%" if axis == "percent" else f"{tick:g}") for tick in ticks),
    )


def _say(value: float, axis: Axis) -> str:
    return wording.percent(value) if axis == "percent" else wording.number(value)


def _finite(series: Sequence[Series]) -> list[float]:
    return [value for one in series for value in one.values if math.isfinite(value)]


def _round_ticks(numbers: Sequence[int]) -> list[int]:
    inner = [int(tick) for tick in even_ticks(numbers[0], numbers[-1]) if tick == int(tick)]
    return sorted({numbers[0], *(tick for tick in inner if numbers[0] <= tick <= numbers[-1])})


def _path(points: Sequence[tuple[float, float, str] | None]) -> str:
    """An SVG path that lifts the pen over gaps; ``h0`` makes a lone point a dot under round line caps."""
    pieces = []
    before = None
    for point in points:
        if point:
            pieces.append(f"L{point[0]:g} {point[1]:g}" if before else f"M{point[0]:g} {point[1]:g}h0")
        before = point
    return "".join(pieces)
