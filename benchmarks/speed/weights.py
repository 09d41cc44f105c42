"""Weights on their way: a broadcast to ten hospitals and ten replies, against copying the same bytes.

The numbers are like those of a real update, for other ones pack otherwise: drawn with replacement from the update that
a hospital of the embedded lesions makes of the default network in one round.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.speed.arena import ON_RAY
from benchmarks.speed.bench import Bench
from fedplatform.experiments.engine import cohort_plan
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.run import partition_data
from fedplatform.learning.training import Trainer

D, HOSPITALS = 11_000_000, 10


def measure(bench: Bench) -> None:
    """The limit writes the broadcast and each reply into shared memory once, and reads each reply once."""
    if bench.has("weights") or bench.tiny:
        return
    d = D // 11 if bench.quick else D
    bench.progress("weights", 0, 1, f"a broadcast of {d:,} numbers and {HOSPITALS} replies")
    systems = (ON_RAY, f"{ON_RAY}/lossless", f"{ON_RAY}/half", f"{ON_RAY}/state_dicts", "flower")
    numbers = bench.folder / "numbers.npy"
    np.save(numbers, np.random.default_rng(0).choice(real_update(), d))
    arguments = {"numbers": str(numbers), "hospitals": HOSPITALS}
    results = bench.arena.turns("weights", systems, repeats=bench.repeats, arguments=arguments)
    bench.arena.rest(systems)
    moved = 4 * d * (1 + HOSPITALS)
    limit_s = bench.machine.limit(read=2 * moved, written=2 * moved)
    bench.add("weights", results, n=HOSPITALS, d=d, hospitals=HOSPITALS, limit_s=limit_s, unit="MB a reply")


def real_update() -> np.ndarray:
    """The update of an honest hospital after one round from the seed's weights."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(byzantine=0, rounds=1)
        shards = Path(folder) / "shards"
        partition_data(experiment, shards)
        plan = cohort_plan(experiment, shards, state_folder=Path(folder))
        trainer = Trainer(plan.training)
        return plan.admit(experiment.hospital_ids()[0], trainer).train(trainer.initial_weights, 1).delta
