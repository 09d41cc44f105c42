"""The table as a picture: every system's CPU seconds at every rule and round, beside the machine's limit."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd

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
    """One panel a size of updates and one for rounds; a dot a system, a dash for the limit."""
    shown = rows[rows["system"].isin(COLOURS) & rows["cpu_s"].notna()]
    panels = [
        (f"{n} updates of {d / 1e6:g} million", place)
        for (d, n), place in shown[shown["work"].str.startswith("rules/")].groupby(["d", "n"])
    ]
    rounds = shown[shown["work"] == "rounds/one"]
    if len(rounds):
        panels.append(("a round of ten hospitals", rounds))
    if not panels:
        return
    lines = -(-len(panels) // ACROSS)
    figure, axes = plt.subplots(lines, ACROSS, figsize=(4.4 * ACROSS, 4.6 * lines), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, place) in zip(axes.flat, panels, strict=False):
        works = list(dict.fromkeys(place["work"]))
        for system, colour in COLOURS.items():
            some = place[place["system"] == system]
            ours = system in ("ours", "ours_on_ray")
            axis.scatter(
                some["cpu_s"],
                [works.index(work) for work in some["work"]],
                color=colour,
                marker="D" if ours else "o",
                s=42 if ours else 26,
                label=system.replace("_", " "),
                zorder=3 if ours else 2,
            )
        limits = (place["cpu_s"] / place["ratio_to_limit"]).groupby(place["work"]).first()
        for number, work in enumerate(works):
            if work in limits and "rules/" in work:
                axis.plot([limits[work]] * 2, [number - 0.35, number + 0.35], color="black", linewidth=1)
        if len(works) > 1:
            axis.set_xscale("log")
        else:
            axis.set_xlim(0, 1.1 * place["cpu_s"].max())
        axis.set_yticks(range(len(works)), [work.partition("/")[2].replace("_", " ") for work in works])
        axis.invert_yaxis()
        axis.set_title(title)
        axis.grid(axis="x", color="#dddddd")
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.supxlabel("CPU seconds, one thread (dash: what the machine needs at least)")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
