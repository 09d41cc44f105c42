"""The table as a picture: every system's CPU seconds at every rule and in a round, beside the machine's limit."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

matplotlib.use("Agg")
ACROSS = 3
COLOURS = {
    "ours": "#b30059",
    "ours_on_ray": "#e377c2",
    "plain": "#7f7f7f",
    "byzfl": "#1f77b4",
    "byzpy": "#2ca02c",
    "flower": "#ff7f0e",
    "krum": "#9467bd",
    "qora": "#8c564b",
    "fedlab": "#bcbd22",
    "pfl": "#17becf",
}


def draw(rows: pd.DataFrame, file: Path) -> None:
    """A panel for every size of updates, a dot a system and a dash for the limit; and one for a round of training."""
    shown = rows[rows["system"].isin(COLOURS) & rows["cpu_s"].notna()]
    rules = [place for _, place in shown[shown["work"].str.startswith("rules/")].groupby(["d", "n"])]
    rounds = shown[shown["work"] == "rounds/one"]
    panels = [*((_rules, place) for place in rules), *([(_rounds, rounds)] if len(rounds) else [])]
    if not panels:
        return
    lines = -(-len(panels) // ACROSS)
    figure, axes = plt.subplots(lines, ACROSS, figsize=(4.6 * ACROSS, 4.6 * lines), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (panel, place) in zip(axes.flat, panels, strict=False):
        panel(axis, place)
        axis.invert_yaxis()
        axis.grid(axis="x", color="#dddddd")
    dots = [
        plt.Line2D([], [], color=colour, marker=_marker(system), linestyle="") for system, colour in COLOURS.items()
    ]
    names = [system.replace("_", " ") for system in COLOURS]
    figure.legend(dots, names, loc="outside upper center", ncols=len(names), frameon=False)
    figure.supxlabel("CPU seconds (dash: what the machine needs at least; line: least to most of the turns)")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _rules(axis: Axes, place: pd.DataFrame) -> None:
    works = list(dict.fromkeys(place["work"]))
    for row in place.itertuples():
        _dot(axis, row, works.index(row.work))
    limits = (place["cpu_s"] / place["ratio_to_limit"]).groupby(place["work"]).first()
    for number, work in enumerate(works):
        axis.plot([limits[work]] * 2, [number - 0.35, number + 0.35], color="black", linewidth=1)
    axis.set_xscale("log")
    axis.set_yticks(range(len(works)), [work.partition("/")[2].replace("_", " ") for work in works])
    axis.set_title(f"{place['n'].iloc[0]} updates of {place['d'].iloc[0] / 1e6:g} million")


def _rounds(axis: Axes, place: pd.DataFrame) -> None:
    for number, row in enumerate(place.itertuples()):
        _dot(axis, row, number)
    axis.set_xlim(0, 1.1 * place["cpu_max"].max())
    axis.set_yticks(range(len(place)), [system.replace("_", " ") for system in place["system"]])
    axis.set_title(f"a round of {place['hospitals'].iloc[0]} hospitals")


def _dot(axis: Axes, row: object, height: float) -> None:
    colour, system = COLOURS[row.system], row.system  # type: ignore[attr-defined]
    axis.plot([row.cpu_min, row.cpu_max], [height, height], color=colour, linewidth=1)  # type: ignore[attr-defined]
    axis.plot(row.cpu_s, height, color=colour, marker=_marker(system), zorder=3)  # type: ignore[attr-defined]


def _marker(system: str) -> str:
    return "D" if system.startswith("ours") else "o"
