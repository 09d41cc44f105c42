"""The krum package 0.9.1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from krum.primitives.aggregators.average import Average
from krum.primitives.aggregators.geometric_median import GeometricMedian
from krum.primitives.aggregators.krum import Krum
from krum.primitives.aggregators.median import Median
from krum.primitives.aggregators.multikrum import MultiKrum
from krum.primitives.aggregators.trimmed_mean import TrimmedMean

from benchmarks.speed.contestant import Job
from benchmarks.speed.systems.updates import opened

torch.set_num_threads(1)


def rule(aggregator: Any, options: Callable[[int, int], dict[str, int]]) -> Job:
    @contextmanager
    def job(deltas: str, f: int, radius: float) -> Iterator[Callable[[], torch.Tensor]]:
        rows = torch.from_numpy(opened(deltas))
        yield lambda: aggregator.aggregate(rows, **options(len(rows), f))

    return job


JOBS: dict[str, Job] = {
    "mean": rule(Average, lambda n, f: {}),
    "median": rule(Median, lambda n, f: {}),
    "trimmed_mean": rule(TrimmedMean, lambda n, f: {"n": n, "f": f}),
    "krum": rule(Krum, lambda n, f: {"n": n, "f": f}),
    "multi_krum": rule(MultiKrum, lambda n, f: {"n": n, "f": f, "m": n - f}),
    "geometric_median": rule(GeometricMedian, lambda n, f: {"n": n, "f": f}),
}
