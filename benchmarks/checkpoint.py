"""What a checkpoint costs: bytes and milliseconds a round (``python -m benchmarks.checkpoint``), some two minutes.

A federation of ten hospitals after fifty rounds, with the memory that hybrid trust really has after two rounds, for
networks of three sizes. Milliseconds are the median of seven, fsync and removal of the oldest among them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from fedplatform.experiments.checkpoint import Checkpoint, CheckpointFolder, Checkpoints
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.run import partition_data
from fedplatform.federated.server import FederationState
from fedplatform.learning.training import Trainer

ROUNDS, TIMES = 50, 7
MODELS = ("small_cnn", "small_resnet", "resnet18")


def main() -> None:
    base = Experiment.from_settings(
        {"data": "lesions", "size": 32, "rounds": 2, "attack": "sign_flip", "rule": "hybrid+trust", "root_size": 40}
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        partition_data(base, folder / "shards")
        launched = InProcessEngine().launch(
            base, folder / "shards", state_folder=folder / "hospitals", checkpoints=folder / "real"
        )
        with launched as federation:
            reports = list(federation.reports())
        real = Checkpoints.open(CheckpointFolder.of(folder / "real", base), base.rule).found
        assert real is not None
        print(f"{'network':14}{'weights':>12}{'rule':>14}{'MB':>8}{'ms':>8}{'CPU ms':>8}")
        for model in MODELS:
            training = base.replace(model=model).local_training(channels=1, num_classes=2)
            layout = Trainer(training).layout
            draw = np.random.default_rng(0)
            weights, delta = (draw.normal(size=n).astype(np.float32) for n in (layout.size, layout.num_shared))
            for rule, memory in (("median", None), ("hybrid+trust", real.state.memory)):
                place = CheckpointFolder(folder / f"{model}-{rule}", {})
                checkpoints = Checkpoints.open(place, base.rule)
                wall, cpu = [], []
                for number in range(1, TIMES + 1):
                    state = FederationState(number, weights, delta, memory, real.state.root_personal)
                    begun, used = time.perf_counter(), time.process_time()
                    checkpoints.save(Checkpoint(state, tuple(reports * (ROUNDS // len(reports)))))
                    wall.append(1e3 * (time.perf_counter() - begun))
                    cpu.append(1e3 * (time.process_time() - used))
                newest = max(place.path.glob("round-*"))
                megabytes = sum(file.stat().st_size for file in newest.iterdir()) / 1e6
                print(
                    f"{model:14}{layout.size:12,}{rule:>14}{megabytes:8.2f}"
                    f"{statistics.median(wall):8.0f}{statistics.median(cpu):8.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
