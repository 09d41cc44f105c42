"""The fingerprints of all updates of a run (OptiGradTrust, arXiv 2507.23638), as one drawing for each feature."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedplatform.core import wording
from fedplatform.core.messages import HospitalRecord
from fedplatform.experiments.report.finished_run import FinishedRun
from fedplatform.experiments.report.frame import Frame, lay_out

DARKEST = 6.0  # robust z-scores at and beyond it share the darkest colour
FEATURES = {  # by its name in the records: its name in words, and which end of it is the suspicious one
    "reconstruction_error": ("reconstruction error", "A lie is hard to reconstruct: high."),
    "root_cosine": ("cosine to the root update", "A lie points away from the server's own update: low."),
    "peer_cosine": ("mean cosine to the others", "A lone lie points away from the others: low; a shared one: high."),
    "norm": ("norm", "A lie that shouts is long: high."),
    "sign_agreement": ("sign agreement with the root", "A lie disagrees with the server's own update: low."),
    "shapley": ("Shapley value", "A lie does not lower the loss on the root scans: low."),
}


@dataclass(frozen=True)
class FingerprintCell:
    """One feature of one hospital's update in one round."""

    x: int
    y: int
    mark: str  # "above" or "below" the round's median, or "absent"
    shade: float  # 0 to 1
    title: str


@dataclass(frozen=True)
class FingerprintMap:
    """One feature of every update of a run, hospitals by rounds."""

    name: str
    meaning: str
    frame: Frame
    cells: tuple[FingerprintCell, ...]


def draw_fingerprints(run: FinishedRun) -> list[FingerprintMap]:
    """A drawing for each feature that the run has figures of, coloured by robust z-score; none from most rules."""
    # Six drawings stand side by side and hold no letter, so their cells are small.
    frame = lay_out(run, room=190, narrowest=3, widest=24, row=16, crowded_row=13)
    maps = []
    for feature, (name, meaning) in FEATURES.items():
        cells = tuple(
            _cell(record, feature, name, x=frame.columns[record.round_number], y=row * frame.cell_height)
            for row, history in enumerate(run.hospitals)
            for record in history.records
        )
        if any(cell.mark != "absent" for cell in cells):
            maps.append(FingerprintMap(name, meaning, frame, cells))
    return maps


def _cell(record: HospitalRecord, feature: str, name: str, *, x: int, y: int) -> FingerprintCell:
    value, z = getattr(record, feature), getattr(record, f"z_{feature}")
    known = not math.isnan(z)
    says = f"{wording.number(value)}, z {z:+.1f}" if known else f"no figure, {record.state}"
    return FingerprintCell(
        x=x,
        y=y,
        mark="absent" if not known else "below" if z < 0 else "above",
        shade=round(min(abs(z) / DARKEST, 1.0), 2) if known else 0.0,
        title=f"{record.hospital_id}, {name}, round {record.round_number}: {says}",
    )
