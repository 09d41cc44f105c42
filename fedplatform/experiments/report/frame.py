"""Hospitals (rows) against rounds (columns): where each cell, label and tick of such a drawing stands."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedplatform.core import wording
from fedplatform.experiments.report.finished_run import FinishedRun

CROWD = 20  # with more hospitals rows are as low as the letters of their labels allow


@dataclass(frozen=True)
class Frame:
    """A drawing of hospitals by rounds in SVG user units, the origin at the top left of the cells."""

    labels: tuple[tuple[str, bool], ...]  # (hospital, whether it lies), honest ones first
    label_width: float
    columns: dict[int, int]  # where a round begins
    x_ticks: tuple[tuple[float, str], ...]
    cell_width: int
    cell_height: int
    width: int
    height: int


def lay_out(run: FinishedRun, *, room: int, narrowest: int, widest: int, row: int, crowded_row: int) -> Frame:
    """Share ``room`` among the rounds of a run, each from ``narrowest`` to ``widest``; a longer run scrolls sideways.

    ``row`` is the height of a row, ``crowded_row`` that in a crowd of hospitals.
    """
    numbers = [report.round_number for report in run.rounds]
    hospitals = run.hospitals
    width, height = min(widest, max(narrowest, room // len(numbers))), row if len(hospitals) <= CROWD else crowded_row
    columns = {number: index * width for index, number in enumerate(numbers)}
    spread = max(1, math.ceil(28 / width))
    labels = tuple((wording.shorten(history.hospital_id), history.is_byzantine) for history in hospitals)
    return Frame(
        labels=labels,
        # 7.2 is wider than almost every letter at 12 px.
        label_width=16 + max(7.2 * len(name) + (30 if is_byzantine else 0) for name, is_byzantine in labels),
        columns=columns,
        x_ticks=tuple((columns[number] + width / 2, str(number)) for number in numbers[::spread]),
        cell_width=width,
        cell_height=height,
        width=width * len(numbers),
        height=height * len(hospitals),
    )
