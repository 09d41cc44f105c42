"""qora-fl 0.4.0: Rust kernels behind Python. Its Multi-Krum averages at most n - 2f - 2 updates, so it is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import qora

from benchmarks.speed.contestant import Job
from benchmarks.speed.systems.updates import opened


def rule(method: Callable[[int], str]) -> Job:
    @contextmanager
    def job(deltas: str, f: int, radius: float) -> Iterator[Callable[[], np.ndarray]]:
        rows = opened(deltas)
        updates = [np.ascontiguousarray(row[None]) for row in rows]
        aggregator = qora.ByzantineAggregator(method(f), f / len(rows))
        yield lambda: aggregator.aggregate(updates)[0]

    return job


JOBS: dict[str, Job] = {
    "mean": rule(lambda f: "fedavg"),
    "median": rule(lambda f: "median"),
    "trimmed_mean": rule(lambda f: "trimmed_mean"),
    "krum": rule(lambda f: f"krum:{f}"),
}
