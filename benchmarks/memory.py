"""What takes memory where updates or scans are larger than it: every rule over many updates, a round, a large hospital.

    python -m benchmarks.memory rules --hospitals 1000 --weights 2000000
    python -m benchmarks.memory server --hospitals 10 --weights 25600000
    python -m benchmarks.memory hospital --scans 100000 --size 224

Each row runs in a process of its own, with one thread: seconds of CPU and of the clock, and the peak of its memory
beyond what it had before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
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
from fedplatform.core.messages import HospitalState, Predictions, Rehearsal, Reply, Update
from fedplatform.core.vectors import blocks_of
from fedplatform.data.partition import Iid
from fedplatform.data.shards import Shard, partition
from fedplatform.data.splits import Role
from fedplatform.experiments.rule_text import parse_rule
from fedplatform.federated.aggregation import RULES, default_evidence
from fedplatform.federated.hospital import Hospital
from fedplatform.federated.server import Federation
from fedplatform.learning.models import SmallCnn
from fedplatform.learning.parameters import ParameterLayout
from fedplatform.learning.training import FedAvg, LocalTraining, Trainer

DRAWN = 4096  # columns of random numbers, repeated: drawing all of them would take longer than most rules


def over_rules(names: list[str], *, hospitals: int, weights: int, held: int) -> None:
    """Print a row for every rule."""
    size = hospitals * weights * 4 / 2**20
    print(f"{hospitals:,} updates of {weights:,} weights, {size:,.0f} MB in a file\n")
    _rows(names, _rule, hospitals, weights, held)


def _rule(name: str, hospitals: int, weights: int, held: int) -> Callable[[], object]:
    mapped.HELD_BYTES = held
    updates = scratch(hospitals, weights)
    draw = np.random.default_rng(0).standard_normal((hospitals, DRAWN), np.float32)
    for columns in blocks_of(updates, width=DRAWN):
        updates[:, columns] = draw[:, : columns.stop - columns.start] + np.float32(0.1)
    rule = parse_rule(name, f=max(hospitals // 5, 1))
    valley = Valley(np.full(weights, 0.1, np.float32))
    told = replace(default_evidence(updates), root_delta=valley.bottom, root=valley)
    return lambda: rule(updates, told)


@dataclass(frozen=True, eq=False)
class Valley:
    """A root set without scans: its loss is the mean squared distance of a step to ``bottom`` (d,)."""

    bottom: np.ndarray

    def losses(self, steps: np.ndarray) -> np.ndarray:
        """See :class:`fedplatform.core.messages.Root`."""
        return np.array([np.square(step - self.bottom).mean() for step in steps], np.float64)

    def gradient(self, step: np.ndarray) -> np.ndarray:
        """See :class:`fedplatform.core.messages.Root`."""
        return 2 * (step - self.bottom) / np.float32(len(step))

    def rehearse(self, *, num_hospitals: int, num_rounds: int, generator: torch.Generator) -> list[Rehearsal]:
        """Rounds of small random updates: what a scorer learns from them is not what is measured."""
        small = Valley(self.bottom[:DRAWN])
        draws = torch.randn(num_rounds, num_hospitals, len(small.bottom), generator=generator).numpy()
        return [
            Rehearsal(small.bottom + draw, small.bottom - draw, small.bottom, 0 * small.bottom, small) for draw in draws
        ]


def in_a_server(names: list[str], *, hospitals: int, weights: int, held: int) -> None:
    """Print what a round takes for every rule: each update arrives, is written down and let go of; then the step."""
    size = hospitals * weights * 4 / 2**20
    print(f"A round of {hospitals:,} updates of {weights:,} weights, {size:,.0f} MB together\n")
    _rows(names, _round, hospitals, weights, held)


def _rows(names: list[str], work: Callable[..., Callable[[], object]], *sizes: int) -> None:
    """A row for every rule."""
    print("| rule | CPU s | s | peak MB beyond the start |\n|---|---:|---:|---:|")
    for name in names:
        print(_row(name, work, name, *sizes), flush=True)


def _round(name: str, hospitals: int, weights: int, held: int) -> Callable[[], object]:
    mapped.HELD_BYTES = held
    layout = ParameterLayout.of(torch.nn.Linear(1000, weights // 1000, bias=False), personal=frozenset())
    rule = parse_rule(name, f=max(hospitals // 5, 1))
    cohort = Sending(tuple(map(str, range(hospitals))))
    server = Federation(cohort, rule, layout, num_classes=2, seed=0, quorum=1)
    old = np.ones(layout.size, np.float32)
    state = replace(server.start(old), previous_delta=old * 0)  # of a later round, when all of it is there
    return lambda: server.run_round(state)


@dataclass(frozen=True)
class Sending:
    """Hospitals that send random numbers, and hold no scans."""

    hospital_ids: tuple[str, ...]

    def train(self, weights: np.ndarray, round_number: int, asked: Sequence[str] | None = None) -> Iterator[Reply]:
        """One update after another."""
        for number, name in enumerate(self.hospital_ids if asked is None else asked):
            yield self._sent(name, np.random.default_rng(number), weights.size, round_number)

    def _sent(self, name: str, draw: np.random.Generator, size: int, round_number: int) -> Reply:
        delta = np.resize(draw.standard_normal(DRAWN, np.float32) + np.float32(0.1), size)
        return Reply(name, HospitalState.REPORTED, Update(name, round_number, delta, 10, 0.5, 1.0))

    def evaluate(self, weights: np.ndarray, roles: Sequence[Role]) -> list[Predictions]:  # noqa: ARG002
        """Nothing."""
        return []


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
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is in memory now
    before = _megabytes("VmRSS")
    cpu, wall = time.process_time(), time.perf_counter()
    ready()
    return time.process_time() - cpu, time.perf_counter() - wall, _megabytes("VmHWM") - before


def _megabytes(name: str) -> float:
    """A line of Linux's status of this process; ``getrusage`` knows no peak but that of the process and its parent."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    rules = kinds.add_parser("rules")
    rules.add_argument("--hospitals", type=int, default=1000)
    rules.add_argument("--weights", type=int, default=2_000_000)
    rules.add_argument("--rules", default=",".join([*RULES, "nnm+median", "trust(permutations=0)"]))
    rules.add_argument("--held", type=int, default=mapped.HELD_BYTES, help="bytes that an array may take in memory")
    server = kinds.add_parser("server")
    server.add_argument("--hospitals", type=int, default=10)
    server.add_argument("--weights", type=int, default=25_600_000)
    server.add_argument("--rules", default="mean,trimmed_mean,median,geometric_median,krum")
    server.add_argument("--held", type=int, default=mapped.HELD_BYTES, help="bytes that an array may take in memory")
    hospital = kinds.add_parser("hospital")
    hospital.add_argument("--scans", type=int, default=100_000)
    hospital.add_argument("--size", type=int, default=224)
    given = parser.parse_args()
    if given.kind == "hospital":
        in_a_hospital(scans=given.scans, size=given.size)
    else:
        measure = over_rules if given.kind == "rules" else in_a_server
        measure(given.rules.split(","), hospitals=given.hospitals, weights=given.weights, held=given.held)


if __name__ == "__main__":
    main()
