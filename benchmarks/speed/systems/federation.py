"""This project's side of the rounds: shards, an experiment, and one round after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.speed.systems.network import BATCH, MOMENTUM, RATE, SIDE, Small
from fedplatform.data.index import Index
from fedplatform.data.shards import Settings, write_shards
from fedplatform.data.splits import Role
from fedplatform.experiments.experiment import Experiment

BATCHES = 256  # scans that the source gives at a time


@dataclass(frozen=True)
class Scans:
    """The scans of :func:`benchmarks.speed.systems.network.write_scans` as a source, hospital after hospital."""

    pictures: np.ndarray
    labels: np.ndarray
    channels = 1

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(map(str, range(10)))

    def index(self) -> pa.Table:
        return pa.table({"label": self.labels.reshape(-1)})

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        flat = self.pictures.reshape(-1, *self.pictures.shape[2:])
        for start in range(0, len(flat), BATCHES):
            yield flat[start : start + BATCHES]


@contextmanager
def prepared(scans: str) -> Iterator[tuple[Experiment, Path, Path]]:
    """The experiment, the folder of its shards, and a folder for what a run keeps.

    All scans are for training, so that a round does what everybody's round does; what follows it here, the empty
    evaluation, the records and the checkpoint on the disk, is part of the figure.
    """
    found = np.load(scans)
    pictures, labels = found["images"], found["labels"]
    hospitals, each = labels.shape
    source = Scans(pictures, labels)
    index = Index.of(source)
    experiment = Experiment(
        size=SIDE,
        hospitals=hospitals,
        byzantine=0,
        rule="mean",
        model=Small(),
        algorithm="fedavg",
        rounds=100_000,
        batch_size=BATCH,
        learning_rate=RATE,
        momentum=MOMENTUM,
        weight_decay=0.0,
        root_size=0,
    )
    with tempfile.TemporaryDirectory(prefix="speed-run-") as folder:
        shards = Path(folder) / "shards"
        write_shards(
            source,
            index,
            np.full(hospitals * each, Role.TRAIN.value),
            np.repeat(np.arange(hospitals), each),
            settings=Settings("random scans", "random", "as they are", 0, SIDE, 1),
            folder=shards,
        )
        yield experiment, shards, Path(folder) / "state"
