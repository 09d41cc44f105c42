"""ByzPy 0.1.4; its median of an even number is the lower middle value, and the error column says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from byzpy.aggregators.coordinate_wise import CoordinateWiseMedian, CoordinateWiseTrimmedMean
from byzpy.aggregators.geometric_wise import GeometricMedian, Krum, MultiKrum
from byzpy.aggregators.norm_wise import CenteredClipping
from byzpy.pre_aggregators import NearestNeighborMixing

from benchmarks.speed.contestant import Job
from benchmarks.speed.systems.updates import opened

torch.set_num_threads(1)


def rule(build: Callable[[int, int, float], Any]) -> Job:
    @contextmanager
    def job(deltas: str, f: int, radius: float) -> Iterator[Callable[[], torch.Tensor]]:
        rows = [*torch.from_numpy(opened(deltas))]
        aggregator = build(len(rows), f, radius)
        yield lambda: aggregator.aggregate(rows)

    return job


@contextmanager
def mixing(deltas: str, f: int, radius: float) -> Iterator[Callable[[], Any]]:
    rows, mixer = [*torch.from_numpy(opened(deltas))], NearestNeighborMixing(f=f)
    yield lambda: torch.stack(mixer.pre_aggregate(rows))


JOBS: dict[str, Job] = {
    "median": rule(lambda n, f, radius: CoordinateWiseMedian()),
    "trimmed_mean": rule(lambda n, f, radius: CoordinateWiseTrimmedMean(f=f)),
    "krum": rule(lambda n, f, radius: Krum(f=f)),
    "multi_krum": rule(lambda n, f, radius: MultiKrum(f=f, q=n - f)),
    "geometric_median": rule(lambda n, f, radius: GeometricMedian()),
    "centered_clipping": rule(lambda n, f, radius: CenteredClipping(c_tau=radius, M=1, init="zero")),
    "nnm": mixing,
}
