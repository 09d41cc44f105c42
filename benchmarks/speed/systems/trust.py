"""The parts of this project's trust, one by one, and the game whose Shapley values it estimates."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed.contestant import Job
from benchmarks.speed.systems.updates import opened
from fedplatform.core.vectors import combine, shrinkage
from fedplatform.data.lesions import Lesions
from fedplatform.data.shards import ROOT, Manifest, Shard
from fedplatform.data.splits import Role
from fedplatform.experiments.engine import in_process_cohort, local_training
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.run import partition_data
from fedplatform.federated.hospital import Hospital
from fedplatform.federated.root_set import RootSet
from fedplatform.federated.trust.descent import Descent
from fedplatform.federated.trust.fingerprint import Fingerprints, measure, relative_sketches, take
from fedplatform.federated.trust.robust import RobustScores
from fedplatform.federated.trust.update_vae import UpdateVae
from fedplatform.federated.trust.worth import worth_of
from fedplatform.learning.training import Trainer


class FreeRoot:
    """A root set whose slope costs nothing, so that only the arithmetic around it is timed."""

    def __init__(self, slope: np.ndarray) -> None:
        self._slope = slope

    def gradient(self, step: np.ndarray) -> np.ndarray:
        return self._slope


def part(of: Callable[[np.ndarray, np.ndarray], Callable[[], object]]) -> Job:
    """A part of trust, made from the updates and the server's own, which is the first of them."""

    @contextmanager
    def job(deltas: str, f: int, radius: float) -> Iterator[Callable[[], object]]:
        rows = opened(deltas)
        yield of(rows, rows[0].copy())

    return job


def fingerprint(rows: np.ndarray, root: np.ndarray) -> Callable[[], Fingerprints]:
    """All six features, the Shapley values given."""
    vae, n = UpdateVae(), len(rows)
    state = vae.fit(relative_sketches(measure(rows, root)), generator=torch.Generator().manual_seed(0), steps=5)
    ids = tuple(map(str, range(n)))

    def measured() -> Fingerprints:
        found = measure(rows, root)
        errors = vae.errors(state, relative_sketches(found))
        return take(found, hospital_ids=ids, errors=errors, shapley=np.zeros(n))

    return measured


def scored(rows: np.ndarray, root: np.ndarray) -> Callable[[], object]:
    taken, reputation = fingerprint(rows, root)(), np.full(len(rows), 0.6)
    return lambda: RobustScores().score(taken, reputation, None)


def combined(rows: np.ndarray, root: np.ndarray) -> Callable[[], object]:
    norms, weights = measure(rows, root).norms, np.full(len(rows), 1 / len(rows))
    return lambda: combine(weights * shrinkage(norms, float(np.median(norms))), rows)


def descent(rows: np.ndarray, root: np.ndarray) -> Callable[[], object]:
    weights, ones = np.full(len(rows), 1 / len(rows)), np.ones(len(rows))
    return lambda: Descent()(weights, ones, rows, FreeRoot(root))  # type: ignore[arg-type]


@contextmanager
def coalitions(hospitals: int) -> Iterator[Callable[[], np.ndarray]]:
    """What every coalition of the hospitals is worth in a real round on the lesions, three of them sign flippers.

    (2^hospitals,) float64; bit k of a place says whether hospital k is in.
    """
    experiment = Experiment(
        data=Lesions(hospitals=hospitals, patients_per_hospital=20),
        size=32,
        hospitals=hospitals,
        byzantine=hospitals // 3,
        attack="sign_flip",
        rule="mean",
        algorithm="fedavg",
        batch_size=8,
        root_size=40,
    )
    with tempfile.TemporaryDirectory(prefix="speed-game-") as folder:
        shards = Path(folder) / "shards"
        partition_data(experiment, shards)
        trainer = Trainer(local_training(experiment, Manifest.load(shards)))
        cohort = in_process_cohort(experiment, shards, state_folder=Path(folder) / "state")
        weights = trainer.initial_weights
        shared = trainer.layout.num_shared
        server = Hospital("root", Shard.open(shards / ROOT), trainer=trainer, state_file=None, role=Role.ROOT)
        for number in (1, 2):
            updates = [reply.update.delta for reply in cohort.train(weights, number) if reply.update]
            deltas = np.stack(updates)[:, :shared]
            if number == 1:  # an honest step first, so that there is something to lose
                weights = weights + np.median(np.stack(updates), axis=0).astype(np.float32)
        root = RootSet(server).at(weights, 2)
        worth = worth_of(deltas, measure(deltas, root.delta).norms, root)
        members = (np.arange(2**hospitals)[:, None] >> np.arange(hospitals)) % 2 == 1
        yield lambda: worth(members)


JOBS: dict[str, Job] = {
    "fingerprint": part(fingerprint),
    "scorer": part(scored),
    "clip_and_combine": part(combined),
    "descent": part(descent),
    "coalitions": coalitions,
}
