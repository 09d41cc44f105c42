"""The rows of the table as docs/performance.md shows them, a table of Markdown for each work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from benchmarks.speed.arena import LOOP, OURS
from benchmarks.speed.goals import figures

Cells = Callable[[pd.Series], Sequence[object]]


def markdown(rows: pd.DataFrame) -> str:
    """Every table that the rows can fill."""
    return "\n\n".join("\n".join(table) for table in (*_rules(rows), *_others(rows)))


def _rules(rows: pd.DataFrame) -> Iterator[list[str]]:
    ours = rows[rows["work"].str.startswith("rules/") & (rows["system"] == OURS)]
    places = sorted({(row.d, row.n) for row in ours.itertuples()})
    if not places:
        return
    by_place = ours.set_index(["work", "n", "d"])

    def cell(work: str, n: int, d: int) -> str:
        if (work, n, d) not in by_place.index:
            return ""
        row = by_place.loc[(work, n, d)]
        ratio = row["ratio_to_best_peer"]
        times = "–" if ratio != ratio else f"{1 / ratio:.1f}"
        return f"{1000 * row['cpu_s']:.3g} ms ({times}; {row['ratio_to_limit']:.0f})"

    heads = ["rule", *(f"{n} x {d / 1e6:g} M" for d, n in places)]
    names = list(dict.fromkeys(ours["work"]))
    yield _table(
        heads,
        [[name.partition("/")[2].replace("_", " "), *(cell(name, n, d) for d, n in places)] for name in names],
    )


def _others(rows: pd.DataFrame) -> Iterator[list[str]]:
    multi_krum = rows[(rows["system"] == "ours/multi_krum")].set_index(["n", "d"])["cpu_s"]
    loop = rows[(rows["work"] == "rounds/one") & (rows["system"] == LOOP)]["cpu_s"]
    works: tuple[tuple[str, Sequence[str], Cells], ...] = (
        (
            "fingerprint",
            ("part", "n x d", "CPU s", "of one Multi-Krum"),
            lambda row: (
                row["system"],
                _place(row),
                _g(row["cpu_s"]),
                _g(row["cpu_s"] / multi_krum[row["n"], row["d"]]),
            ),
        ),
        (
            "shapley",
            ("how", "coalitions", "error, %"),
            lambda row: (row["system"], _g(row["figure"]), _g(100 * row["error"])),
        ),
        (
            "rounds/one",
            ("a round", "CPU s (least – most)", "wall s (least – most)", "of the plain loop"),
            lambda row: (
                *(row["system"], _span(row, "cpu"), _span(row, "wall")),
                _g(row["cpu_s"] / loop.iloc[0]) if len(loop) else "",
            ),
        ),
        *(
            (work, (work, "hospitals", "CPU s", "wall s", "figure"), _counted)
            for work in ("rounds/first", "rounds/many", "rounds/most", "rounds/long")
        ),
        (
            "weights",
            ("how", "numbers", "CPU s", "wall s", "times the limit", "figure"),
            lambda row: (
                *(row["system"], f"{row['d']:,}", _g(row["cpu_s"]), _g(row["wall_s"])),
                *(_g(row["ratio_to_limit"]), _figure(row)),
            ),
        ),
        *((work, (work, "hospitals", "CPU s", "wall s", "figure"), _counted) for work in ("purification", "detection")),
        *((work, (work, "hospitals", "CPU s", "wall s", "figure"), _counted) for work in ("defence", "serving")),
        ("serving/p99", ("serving/p99", "figure"), lambda row: (row["system"], _figure(row))),
        ("training", ("phase", "CPU s here", "whole"), lambda row: (row["system"], _g(row["cpu_s"]), _figure(row))),
        ("training/profile", ("function", "share, %"), lambda row: (f"`{row['system']}`", _g(100 * row["figure"]))),
    )
    for work, heads, cells in works:
        found = rows[(rows["work"] == work) & rows["note"].isna()]
        if len(found):
            yield _table(heads, [cells(row) for _, row in found.iterrows()])


def _counted(row: pd.Series) -> Sequence[object]:
    return row["system"], row["hospitals"] or "", _g(row["cpu_s"]), _g(row["wall_s"]), _figure(row)


def _table(heads: Sequence[str], lines: Sequence[Sequence[object]]) -> list[str]:
    rule = "|" + "|".join(["---", *["---:"] * (len(heads) - 1)]) + "|"
    return [f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(map(str, line))} |" for line in lines)]


def _place(row: pd.Series) -> str:
    return f"{row['n']} x {row['d'] / 1e6:g} M"


def _span(row: pd.Series, kind: str) -> str:
    return f"{row[f'{kind}_s']:.2f} ({row[f'{kind}_min']:.2f} – {row[f'{kind}_max']:.2f})"


def _figure(row: pd.Series) -> str:
    return "" if row["figure"] != row["figure"] else f"{_g(row['figure'])} {row['unit']}"


def _g(value: float) -> str:
    return "" if value != value else figures(value)
