"""The goals, each as a ratio that a table of results either reaches or misses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd

from benchmarks.speed.arena import LOOP, ON_RAY, OURS


@dataclass(frozen=True)
class Goal:
    """``value`` is at most (or, for a gain, at least) ``target``."""

    words: str
    value: float
    target: float
    unit: str = ""
    is_gain: bool = False

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.value >= self.target if self.is_gain else self.value <= self.target


def goals(rows: pd.DataFrame) -> Iterator[Goal]:
    """Every goal that the rows can speak of, in order."""
    yield from _rules(rows)
    yield from _fingerprint(rows)
    yield from _rounds(rows)
    yield from _purification(rows)


def _rules(rows: pd.DataFrame) -> Iterator[Goal]:
    times = {"median": 4.0, "trimmed_mean": 4.0}
    times |= dict.fromkeys(("krum", "multi_krum", "geometric_median", "centered_clipping", "nnm"), 2.0)
    ours = rows[rows["work"].str.startswith("rules/") & (rows["system"] == OURS)].sort_values(["d", "n"])
    for rule, target in times.items():
        for row in ours[ours["work"] == f"rules/{rule}"].itertuples():
            if row.ratio_to_best_peer == row.ratio_to_best_peer:
                place = f"{rule}, {row.n} x {row.d / 1e6:g} M"
                yield Goal(f"{place}: times faster than the best peer", 1 / row.ratio_to_best_peer, target, "x", True)
    judged = ours[ours["work"].str.removeprefix("rules/").isin(times)]
    results = 4e-6 * judged["d"] * judged["n"].where(judged["work"] == "rules/nnm", 1)
    beyond = (judged["extra_mb"] - results).dropna().astype(float)
    if len(beyond):
        row = judged.loc[beyond.idxmax()]
        where = f"{row['work'].removeprefix('rules/')}, {row['n']} x {row['d'] / 1e6:g} M"
        yield Goal(f"most memory beyond input and result, rules above ({where})", float(beyond.max()), 20.0, "MB")
    if ours["error"].notna().any():
        yield Goal("largest error to the float64 definition", float(ours["error"].max()), 1e-5)


def _fingerprint(rows: pd.DataFrame) -> Iterator[Goal]:
    for _, place in rows[rows["work"] == "fingerprint"].groupby(["n", "d"]):
        cost = place.set_index("system")["cpu_s"]
        size = f"{place['n'].iloc[0]} x {place['d'].iloc[0] / 1e6:g} M"
        yield Goal(f"fingerprint against one Multi-Krum, {size}", cost[OURS] / cost["ours/multi_krum"], 2.0, "x")
    found = rows[rows["work"] == "shapley"].set_index("system")
    if len(found):
        for ours, plain, words in (
            ("ours/untruncated", LOOP, "cached, not truncated, at an error under 5 %"),
            ("ours/default", f"{LOOP}/default", "as by default, at the same error"),
        ):
            share = found.loc[ours, "figure"] / found.loc[plain, "figure"]
            error = f"{100 * found.loc[ours, 'error']:.1f} %"
            yield Goal(f"Shapley, share of plain permutations' coalitions, {words} ({error})", share, 0.2)


def _rounds(rows: pd.DataFrame) -> Iterator[Goal]:
    def at(work: str, system: str, column: str) -> float | None:
        found = rows[(rows["work"] == f"rounds/{work}") & (rows["system"] == system)]
        return float(found[column].iloc[0]) if len(found) else None

    loop = at("one", LOOP, "cpu_s")
    for system in (OURS, ON_RAY):
        name = "in one process" if system == OURS else "on Ray"
        read: Callable[[str, str], float | None] = lambda work, column, system=system: at(work, system, column)  # noqa: E731
        for words, value, target, unit in (
            (f"CPU of a round {name} against the plain loop", _over(read("one", "cpu_s"), loop), 1.15, "x"),
            (f"wall time of a round {name}", read("one", "wall_s"), 0.55, "s"),
            (f"start to first round {name}, 10 hospitals", read("first", "wall_s"), 12.0, "s"),
            (f"memory of 100 hospitals {name}", read("many", "figure"), 4000.0, "MB"),
            (f"1,000 hospitals in one run {name}: memory", read("most", "figure"), 4000.0, "MB"),
            (f"memory after 200 rounds {name}, of that after 100", read("long", "figure"), 1.02, "x"),
        ):
            if value is not None and value == value:
                yield Goal(words, value, target, unit)


def _purification(rows: pd.DataFrame) -> Iterator[Goal]:
    cost = rows[rows["work"] == "purification"].set_index("system")["cpu_s"]
    if len(cost):
        times = cost["plain/diffpure"] / cost[OURS]
        yield Goal("purified scans a second against a plain DiffPure loop", times, 20.0, "x", True)


def _over(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def markdown(rows: pd.DataFrame) -> str:
    """All goals as a Markdown table."""
    lines = ["| goal | measured | target | |", "|---|---:|---:|---|"]
    for goal in goals(rows):
        bound = "at least" if goal.is_gain else "at most"
        value, target = (f"{figures(number)} {goal.unit}".strip() for number in (goal.value, goal.target))
        lines.append(f"| {goal.words} | {value} | {bound} {target} | {'met' if goal.met else 'missed'} |")
    return "\n".join(lines)


def figures(number: float) -> str:
    """A number to three digits, a large one whole."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"
