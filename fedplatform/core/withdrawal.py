"""That a hospital has withdrawn from a federation, as it is passed on and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedplatform.core.files import write_durably

WITHDRAWALS = "withdrawals.json"  # in a run's folder


@dataclass(frozen=True)
class Withdrawal:
    """A hospital that is not asked any more after ``after_round``; ``date`` is when it withdrew, in ISO 8601.

    ``removed`` are the files that were deleted for it, ``changed`` those that it was taken out of, both by their names
    in the run's folder.
    """

    hospital_id: str
    after_round: int
    date: str = ""
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """What the records of later rounds say."""
        return f"withdrew after round {self.after_round}; what it kept was deleted"


def read_withdrawals(folder: Path) -> tuple[Withdrawal, ...]:
    """Who has withdrawn from the run in ``folder``, in order."""
    file = folder / WITHDRAWALS
    rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return tuple(Withdrawal(**{**row, **{key: tuple(row[key]) for key in ("removed", "changed")}}) for row in rows)


def write_withdrawals(folder: Path, withdrawals: Sequence[Withdrawal]) -> None:
    """Keep who has withdrawn; it outlives a power cut. Raises OSError."""
    text = json.dumps([asdict(one) for one in withdrawals], indent=1)
    write_durably(folder / WITHDRAWALS, text.encode() + b"\n")
