"""The weight of every hospital in every round, as a drawing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedplatform.core import wording
from fedplatform.core.messages import HospitalState
from fedplatform.experiments.report.finished_run import FinishedRun
from fedplatform.experiments.report.frame import Frame, lay_out


@dataclass(frozen=True)
class HeatCell:
    """One hospital in one round."""

    x: int
    y: int
    mark: str  # "weight", or the state that is not reported
    shade: float  # 0 to 1
    title: str


@dataclass(frozen=True)
class HeatMap:
    """The weights of a run, hospitals by rounds."""

    frame: Frame
    cells: tuple[HeatCell, ...]
    most: float  # the weight of the darkest cell


def draw_heat_map(run: FinishedRun) -> HeatMap:
    """Lay the hospitals and rounds of a run out; the darkest cell is the largest weight."""
    # Never narrower than a letter.
    frame = lay_out(run, room=840, narrowest=14, widest=44, row=24, crowded_row=17)
    weights = [record.weight for history in run.hospitals for record in history.records]
    most = max((weight for weight in weights if math.isfinite(weight)), default=0.0)
    cells = [
        HeatCell(
            x=frame.columns[record.round_number],
            y=row * frame.cell_height,
            mark="weight" if record.state == HospitalState.REPORTED else record.state.value,
            shade=round(record.weight / most, 2) if most and math.isfinite(record.weight) else 0.0,
            title=f"{record.hospital_id}, round {record.round_number}: {record.state}, "
            f"weight {wording.number(record.weight)}{f' ({record.reason})' if record.reason else ''}",
        )
        for row, history in enumerate(run.hospitals)
        for record in history.records
    ]
    return HeatMap(frame, tuple(cells), most)
