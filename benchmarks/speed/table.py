"""The table of results: a row for each system at each work, on the disk as soon as it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.speed.arena import NO_PEERS, Result

KEY = ["work", "system", "n", "d", "hospitals"]


class Table:
    """``speed.csv``. A work that is measured again replaces its rows."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.rows = pd.read_csv(file) if file.is_file() else pd.DataFrame(columns=KEY)

    def has(self, work: str, **place: int) -> bool:
        """Whether there are rows of this work in this place."""
        return bool(self._at(work, place).any())

    def _at(self, work: str, place: dict[str, int]) -> pd.Series:
        chosen = self.rows["work"] == work
        for column, value in place.items():
            chosen &= self.rows[column] == value
        return chosen

    def add(
        self,
        work: str,
        results: Sequence[Result],
        *,
        n: int = 0,
        d: int = 0,
        hospitals: int = 0,
        limit_s: float = float("nan"),
        errors: dict[str, float] | None = None,
        unit: str = "",
    ) -> list[dict[str, object]]:
        """Add what systems cost in one place, with the ratios to the best peer and to the limit in CPU seconds.

        ``figure`` is whatever else a job counted, in ``unit``; ``error`` the largest distance to the definition in
        units of its largest entry.
        """
        measured = [result for result in results if not result.cannot]
        peers = [result.median("cpu_s") for result in measured if result.system.partition("/")[0] not in NO_PEERS]
        best = min(peers, default=float("nan"))
        new = []
        for result in results:
            row: dict[str, object] = {"work": work, "system": result.system, "n": n, "d": d, "hospitals": hospitals}
            for kind in ("cpu", "wall"):
                values = result.costs.get(f"{kind}_s", [])
                row[f"{kind}_s"] = result.median(f"{kind}_s")
                row[f"{kind}_min"], row[f"{kind}_max"] = (min(values), max(values)) if values else (np.nan, np.nan)
            row["extra_mb"] = result.median("extra_mb")
            row["ratio_to_best_peer"] = result.median("cpu_s") / best
            row["ratio_to_limit"] = result.median("cpu_s") / limit_s
            row["repeats"] = len(result.costs.get("cpu_s", []))
            row["error"] = (errors or {}).get(result.system, np.nan)
            row["figure"] = result.median("figure")
            row["unit"] = unit
            row["note"] = result.cannot
            new.append(row)
        place = {"n": n, "d": d, "hospitals": hospitals}
        kept = self.rows[~self._at(work, place)]
        fresh = pd.DataFrame(new)
        self.rows = pd.concat([kept, fresh], ignore_index=True) if len(kept) else fresh
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self.rows.to_csv(self._file, index=False, float_format="%.4g")
        return new
