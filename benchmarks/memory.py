"""What takes memory where updates or scans are larger than it: every rule over updates in a file, and a large hospital.

    python -m benchmarks.memory rules --hospitals 1000 --weights 2000000
    python -m benchmarks.memory hospital --scans 100000 --size 224

Each row runs in a process of its own, with one thread: seconds of CPU and of the clock, and the peak of its memory
beyond what it had before.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import torch

from fedplatform.core import mapped
from fedplatform.core.mapped import scratch
from fedplatform.core.vectors import blocks_of
from fedplatform.data.partition import Iid
from fedplatform.data.shards import Shard, partition
from fedplatform.data.splits import Role
from fedplatform.experiments.rule_text import parse_rule
from fedplatform.federated.aggregation import RULES, default_evidence
from fedplatform.federated.hospital import Hospital
from fedplatform.learning.models import SmallCnn
from fedplatform.learning.training import FedAvg, LocalTraining, Trainer

DRAWN = 4096  # columns of random numbers, repeated: drawing all of them would take longer than most rules


def over_rules(names: list[str], *, hospitals: int, weights: int, held: int) -> None:
    """Print a row for every rule."""
    size = hospitals * weights * 4 / 2**20
    print(f"{hospitals:,} updates of {weights:,} weights, {size:,.0f} MB in a file\n")
    print("| rule | CPU s | s | peak MB beyond the start |\n|---|---:|---:|---:|")
    for name in names:
        print(_row(name, _rule, name, hospitals, weights, held), flush=True)


def _rule(name: str, hospitals: int, weights: int, held: int) -> Callable[[], object]:
    mapped.HELD_BYTES = held
    updates = scratch(hospitals, weights)
    draw = np.random.default_rng(0).standard_normal((hospitals, DRAWN), np.float32)
    for columns in blocks_of(updates, width=DRAWN):
        updates[:, columns] = draw[:, : columns.stop - columns.start] + np.float32(0.1)
    rule = parse_rule(name, f=max(hospitals // 5, 1))
    told = replace(default_evidence(updates), root_delta=np.full(weights, 0.1, np.float32))
    return lambda: rule(updates, told)


def in_a_hospital(*, scans: int, size: int) -> None:
    """Print an epoch of a hospital with so many scans, and of the same steps over scans that lie in memory."""
    print(f"{scans:,} colour scans of {size} pixels, {scans * 3 * size**2 / 2**20:,.0f} MB, one epoch, batches of 32\n")
    print("| | CPU s | s | peak MB beyond the start |\n|---|---:|---:|---:|")
    with TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        partition(
            Repeated(scans), name="", how=Iid(), num_hospitals=1, seed=0, size=size, channels=3, root_size=0,
            folder=shards, test_fraction=0.01, validation_fraction=0.0,
        )  # fmt: skip
        file = str(shards / "hospital-00.parquet")
        print(_row("a hospital: scans from its shard", _hospital, file, size), flush=True)
        print(_row("a plain loop: the same steps, 32 scans in memory again and again", _plain, file, size), flush=True)


def _hospital(file: str, size: int) -> Callable[[], object]:
    trainer = _trainer(size)
    return lambda: Hospital("a", Shard.open(Path(file)), trainer=trainer, state_file=None).train(
        trainer.initial_weights, 1
    )


def _plain(file: str, size: int) -> Callable[[], object]:
    network = _trainer(size).model.train()
    count = len(Shard.open(Path(file)).labels(Role.TRAIN))
    scans, labels = np.random.default_rng(0).integers(0, 256, (32, 3, size, size), np.uint8), torch.arange(32) % 2
    optimiser = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)

    def epoch() -> None:
        for _ in range(count // 32):
            optimiser.zero_grad()
            batch = torch.from_numpy(scans.astype(np.float32) / 255).contiguous(memory_format=torch.channels_last)
            torch.nn.functional.cross_entropy(network(batch), labels).backward()
            optimiser.step()

    return epoch


def _trainer(size: int) -> Trainer:
    training = LocalTraining(
        SmallCnn(width=4), FedAvg(), channels=3, num_classes=2, size=size, rounds=1, epochs=1, batch_size=32,
        learning_rate=0.05, momentum=0.9, weight_decay=1e-4, seed=0,
    )  # fmt: skip
    return Trainer(training)


@dataclass(frozen=True)
class Repeated:
    """One batch of random pictures again and again, each a group of its own."""

    count: int
    classes: tuple[str, ...] = ("a", "b")
    channels: int = 3

    def index(self) -> pa.Table:
        """Label and group."""
        rows = np.arange(self.count)
        return pa.table({"label": rows % 2, "group": rows})

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        """The same 100 pictures."""
        batch = np.random.default_rng(0).integers(0, 256, (100, channels, size, size), np.uint8)
        for start in range(0, self.count, 100):
            yield batch[: min(100, self.count - start)]


def _row(name: str, work: Callable[..., Callable[[], object]], *given: object) -> str:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            cpu, wall, peak = pool.submit(_measured, work, given).result()
        except ValueError as error:
            return f"| {name} | {error} | | |"
    return f"| {name} | {cpu:,.1f} | {wall:,.1f} | {peak:,.0f} |"


def _measured(work: Callable[..., Callable[[], object]], given: tuple[object, ...]) -> tuple[float, float, float]:
    torch.set_num_threads(1)
    ready = work(*given)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = time.process_time(), time.perf_counter()
    ready()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return time.process_time() - cpu, time.perf_counter() - wall, (peak - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    rules = kinds.add_parser("rules")
    rules.add_argument("--hospitals", type=int, default=1000)
    rules.add_argument("--weights", type=int, default=2_000_000)
    rules.add_argument("--rules", default=",".join([*RULES, "nnm+median"]))
    rules.add_argument("--held", type=int, default=mapped.HELD_BYTES, help="bytes that an array may take in memory")
    hospital = kinds.add_parser("hospital")
    hospital.add_argument("--scans", type=int, default=100_000)
    hospital.add_argument("--size", type=int, default=224)
    given = parser.parse_args()
    if given.kind == "rules":
        over_rules(given.rules.split(","), hospitals=given.hospitals, weights=given.weights, held=given.held)
    else:
        in_a_hospital(scans=given.scans, size=given.size)


if __name__ == "__main__":
    main()
