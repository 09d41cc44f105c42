"""Rounds of federated averaging: what one costs, how soon the first is over, and what many hospitals hold in memory."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.speed.arena import LOOP, ON_RAY, OURS, Cannot, Result
from benchmarks.speed.bench import Bench
from benchmarks.speed.systems.network import SmallNetwork, write_scans

PEERS = ("byzfl", "fedlab", "flower", "pfl")
SCANS = 200
MANY, MANY_SCANS = 100, 50
MOST, MOST_SCANS = 1000, 20
LONG, LONG_HOSPITALS, LONG_SCANS, WARM = 200, 4, 40, 100
PARAMETERS = sum(parameter.numel() for parameter in SmallNetwork().parameters())


def measure(bench: Bench) -> None:
    parts: tuple[Callable[[Bench], None], ...] = (one_round, first_round)
    if not bench.quick:
        parts += (many_hospitals, most_hospitals, long_run)
    for number, part in enumerate(parts):
        bench.progress("rounds", number, len(parts), part.__name__.replace("_", " "))
        part(bench)


def one_round(bench: Bench) -> None:
    """Ten hospitals with 200 scans each, one epoch, batches of 32; everybody in turn."""
    if bench.has("rounds/one"):
        return
    hospitals, scans = (3, 40) if bench.tiny else (10, SCANS)
    systems = (OURS, LOOP) if bench.tiny else (OURS, ON_RAY, *PEERS, LOOP)
    file = _scans(bench, hospitals, scans)
    results = bench.arena.turns("rounds", systems, repeats=bench.repeats, arguments={"scans": file})
    loop = next(result for result in results if result.system == LOOP).median("cpu_s")
    bench.add("rounds/one", results, n=scans, d=PARAMETERS, hospitals=hospitals, limit_s=loop)
    bench.arena.rest(systems)


def first_round(bench: Bench) -> None:
    """From a process that is not there yet to the end of the first round."""
    if bench.has("rounds/first") or bench.tiny:
        return
    file = _scans(bench, 10, SCANS)
    systems = (OURS, ON_RAY, "flower", LOOP) if bench.quick else (OURS, ON_RAY, *PEERS, LOOP)
    costs: dict[str, dict[str, list[float]]] = {system: {"cpu_s": [], "wall_s": []} for system in systems}
    refused: dict[str, str] = {}
    for _ in range(1 if bench.quick else bench.repeats):
        for system in systems:
            bench.arena.rest([system])
            start = time.monotonic()
            try:
                contestant = bench.arena.contestant(system)
                contestant.ask("prepare", job="rounds", arguments={"scans": file})
                contestant.ask("run")
            except Cannot as reason:
                refused[system] = str(reason)
                continue
            costs[system]["wall_s"].append(time.monotonic() - start)
            costs[system]["cpu_s"].append(contestant.cpu_s())
            bench.arena.rest([system])
    results = [
        Result(system, {} if system in refused else costs[system], cannot=refused.get(system, "")) for system in systems
    ]
    bench.add("rounds/first", results, n=SCANS, d=PARAMETERS, hospitals=10)


def many_hospitals(bench: Bench) -> None:
    """What a hundred hospitals hold in memory, all processes together: the most that was seen in two rounds."""
    if bench.has("rounds/many"):
        return
    _watched(bench, "rounds/many", (OURS, ON_RAY, "flower"), hospitals=MANY, scans=MANY_SCANS, rounds=2)


def most_hospitals(bench: Bench) -> None:
    """A thousand simulated hospitals in one run."""
    if bench.has("rounds/most"):
        return
    _watched(bench, "rounds/most", (OURS, ON_RAY), hospitals=MOST, scans=MOST_SCANS, rounds=1)


def _watched(bench: Bench, work: str, systems: tuple[str, ...], *, hospitals: int, scans: int, rounds: int) -> None:
    file = _scans(bench, hospitals, scans)
    results = []
    for system in systems:
        costs: dict[str, list[float]] = {}
        try:
            contestant = bench.arena.contestant(system)
            with contestant.watched() as seen:
                contestant.ask("prepare", job="rounds", arguments={"scans": file})
                for _ in range(rounds):
                    for figure, value in contestant.ask("run").items():
                        costs.setdefault(figure, []).append(value)
            costs["figure"] = [max(seen)]
            results.append(Result(system, costs))
        except Cannot as reason:
            results.append(Result(system, cannot=str(reason)))
        bench.arena.rest([system])
    bench.add(work, results, n=scans, d=PARAMETERS, hospitals=hospitals, unit="MB held")


def long_run(bench: Bench) -> None:
    """How many times as much is held after 200 rounds as after the first 100."""
    if bench.has("rounds/long"):
        return
    file = _scans(bench, LONG_HOSPITALS, LONG_SCANS)
    results = []
    for system in (OURS, ON_RAY):
        costs: dict[str, list[float]] = {}
        contestant = bench.arena.contestant(system)
        contestant.ask("prepare", job="rounds", arguments={"scans": file})
        held = 0.0
        for number in range(LONG):
            for figure, value in contestant.ask("run").items():
                costs.setdefault(figure, []).append(value)
            if number + 1 == WARM:
                held = contestant.memory_mb()
        results.append(Result(system, {**costs, "figure": [contestant.memory_mb() / held]}))
        bench.arena.rest([system])
    bench.add("rounds/long", results, n=LONG_SCANS, d=PARAMETERS, hospitals=LONG_HOSPITALS, unit="times as much")


def _scans(bench: Bench, hospitals: int, scans: int) -> str:
    file = bench.folder / f"scans-{hospitals}-{scans}.npz"
    if not file.exists():
        write_scans(str(file), hospitals=hospitals, scans=scans)
    return str(file)
