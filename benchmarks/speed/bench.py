"""What a work gets: the arena, the machine's limits, the table, and how much it may do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.speed.arena import Arena, Result
from benchmarks.speed.limits import Machine
from benchmarks.speed.table import Table


@dataclass
class Bench:
    """One run of the command. ``tiny`` is for tests; ``resumed`` leaves alone what has rows already."""

    arena: Arena
    machine: Machine
    table: Table
    folder: Path
    repeats: int
    quick: bool
    tiny: bool
    resumed: bool
    say: Callable[[str], object]
    expected: dict[str, float]  # seconds, by work
    _resumed_at: float | None = None  # the share that was done already
    _started: float = field(default_factory=time.monotonic)

    def has(self, work: str, **place: int) -> bool:
        """Whether this was measured before and is to be left alone."""
        return self.resumed and self.table.has(work, **place)

    def progress(self, work: str, done: int, of: int, what: str) -> None:
        """Say what comes next, and how long the rest may take."""
        names = list(self.expected)
        before = sum(self.expected[name] for name in names[: names.index(work)])
        share = (before + self.expected[work] * done / max(of, 1)) / sum(self.expected.values())
        self._resumed_at = share if self._resumed_at is None else self._resumed_at
        passed, gained = time.monotonic() - self._started, share - self._resumed_at
        left = f", about {passed / gained * (1 - share) / 60:.0f} min left" if gained > 0.03 else ""
        self.say(f"[{100 * share:3.0f} %{left}] {what}")

    def add(self, work: str, results: Sequence[Result], **place: object) -> None:
        """Put results into the table, and say them."""
        for row in self.table.add(work, results, **place):  # type: ignore[arg-type]
            ratio = row["ratio_to_best_peer"]
            said = row["note"] or f"{row['cpu_s']:9.4f} CPU s {row['wall_s']:9.4f} wall s {row['extra_mb']:7.0f} MB"
            figure = f" {row['figure']:.4g} {row['unit']}" if row["figure"] == row["figure"] else ""
            best = f" {ratio:6.2f} x best peer" if ratio == ratio else ""
            self.say(f"    {work:24} {row['system']:12} {said}{best}{figure}")
