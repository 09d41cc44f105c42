"""This project, as its users call it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.speed.contestant import Job
from benchmarks.speed.systems import defending, endpoints, recipe, trust
from benchmarks.speed.systems.federation import prepared
from benchmarks.speed.systems.updates import opened
from fedplatform.core.messages import Evidence
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.federated.aggregation import (
    FLAME,
    Aggregator,
    Bucketing,
    Bulyan,
    CenteredClipping,
    DnC,
    FLTrust,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    Mixer,
    MultiKrum,
    NearestNeighbourMixing,
    NormClipping,
    SignGuard,
    TrimmedMean,
    WeightedMean,
)

torch.set_num_threads(1)


def rule(build: Callable[[int, float], Aggregator]) -> Job:
    """An aggregation rule, made from f and the clipping radius."""

    @contextmanager
    def job(deltas: str, f: int, radius: float) -> Iterator[Callable[[], np.ndarray]]:
        rows = opened(deltas)
        aggregate, evidence = build(f, radius), evidence_of(rows)
        yield lambda: aggregate(rows, evidence).delta

    return job


def evidence_of(rows: np.ndarray) -> Evidence:
    """What a rule may know: the first update stands for the server's own, and the round before moved nothing."""
    n, d = rows.shape
    return Evidence(
        hospital_ids=tuple(f"hospital-{number:02d}" for number in range(n)),
        num_examples=np.full(n, 100),
        previous_delta=np.zeros(d, np.float32),
        generator=torch.Generator().manual_seed(0),
        root_delta=rows[0].copy(),
    )


def mixing(build: Callable[[int], Mixer]) -> Job:
    """A mixing step, made from f; its result is the mixed updates."""

    @contextmanager
    def job(deltas: str, f: int, radius: float) -> Iterator[Callable[[], np.ndarray]]:
        rows = opened(deltas)
        mixer, evidence = build(f), evidence_of(rows)
        yield lambda: mixer(rows, evidence)[0]

    return job


@contextmanager
def rounds(scans: str) -> Iterator[Callable[[], object]]:
    """The engine that keeps everything in one process, with a checkpoint after every round, as by default."""
    with prepared(scans) as (experiment, shards, state):
        launched = InProcessEngine().launch(
            experiment, shards, state_folder=state, checkpoints=state.parent / "checkpoints"
        )
        with launched as federation:
            reports = federation.reports()
            yield lambda: next(reports) and None


JOBS: dict[str, Job] = {
    "mean": rule(lambda f, radius: Mean()),
    "median": rule(lambda f, radius: Median()),
    "trimmed_mean": rule(lambda f, radius: TrimmedMean(f)),
    "krum": rule(lambda f, radius: Krum(f)),
    "multi_krum": rule(lambda f, radius: MultiKrum(f)),
    "geometric_median": rule(lambda f, radius: GeometricMedian()),
    "centered_clipping": rule(lambda f, radius: CenteredClipping(radius=radius)),
    "fltrust": rule(lambda f, radius: FLTrust()),
    "nnm": mixing(NearestNeighbourMixing),
    "weighted_mean": rule(lambda f, radius: WeightedMean()),
    "bulyan": rule(lambda f, radius: Bulyan(max(1, f - 1))),  # it needs n >= 4f + 3, a fifth is too many at 10
    "dnc": rule(lambda f, radius: DnC(f)),
    "signguard": rule(lambda f, radius: SignGuard()),
    "flame": rule(lambda f, radius: FLAME()),
    "bucketing": mixing(lambda f: Bucketing()),
    "norm_clip": mixing(lambda f: NormClipping()),
    "rounds": rounds,
    **trust.JOBS,
    **defending.JOBS,
    **endpoints.JOBS,
    **recipe.JOBS,
}
