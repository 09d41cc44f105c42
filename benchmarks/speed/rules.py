"""Aggregation rules against every peer that has them, and the float64 definition."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.speed.arena import OURS
from benchmarks.speed.bench import Bench
from benchmarks.speed.definitions import Definitions
from benchmarks.speed.limits import Machine

RULES = (
    "mean",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "geometric_median",
    "centered_clipping",
    "nnm",
    "fltrust",
)
BY_DISTANCES = ("krum", "multi_krum", "geometric_median", "nnm")
PEERS = ("byzfl", "byzpy", "flower", "krum", "qora")
SIZES = ((10, 1_000_000), (32, 1_000_000), (100, 1_000_000), (10, 11_000_000))
QUICK_SIZES = ((10, 1_000_000), (32, 1_000_000))
QUICK_AT_32 = ("median", "krum", "geometric_median")
ON_ELEVEN_MILLION = ("median", "trimmed_mean", "krum", "geometric_median", "centered_clipping", "fltrust")


def measure(bench: Bench) -> None:
    """Each rule at each size; a fifth of the updates are lies, turned round and ten times too long."""
    places = list(sizes(bench))
    done = 0
    for n, d, names in places:
        left = [name for name in names if not bench.has(f"rules/{name}", n=n, d=d, hospitals=n)]
        done += len(names) - len(left)
        if not left:
            continue
        file = bench.folder / f"updates-{n}-{d}.npy"
        rows = written(file, n, d)
        f, radius = n // 5, float(np.median(np.linalg.norm(rows, axis=1))) / 2
        definitions = Definitions(rows, f=f, radius=radius)
        for name in left:
            bench.progress("rules", done, sum(len(names) for _, _, names in places), f"{name}, {n} x {d:,}")
            results = bench.arena.turns(
                name,
                (OURS, *PEERS, "plain"),
                repeats=bench.repeats,
                arguments={"deltas": str(file), "f": f, "radius": radius},
                keep_result=True,
            )
            right = definitions(name)
            scale = float(np.abs(right).max())
            errors = {
                result.system: float(np.abs(result.result - right).max()) / scale
                for result in results
                if result.result is not None
            }
            limit_s = limit(name, n, d, bench.machine)
            bench.add(f"rules/{name}", results, n=n, d=d, hospitals=n, limit_s=limit_s, errors=errors)
            done += 1
        file.unlink()
    bench.arena.rest((*PEERS, "plain"))


def sizes(bench: Bench) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """n, d and the rules that are measured there."""
    if bench.tiny:
        yield 10, 20_000, RULES
        return
    if bench.quick:
        yield *QUICK_SIZES[0], RULES
        yield *QUICK_SIZES[1], QUICK_AT_32
        return
    for n, d in SIZES:
        yield n, d, ON_ELEVEN_MILLION if d > 10**7 else RULES


def written(file: Path, n: int, d: int) -> np.ndarray:
    """Updates (n, d) float32 in a file: honest ones share a direction, and the last fifth of them lies."""
    draw = np.random.default_rng(0)
    rows = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(n, d))
    shared = draw.standard_normal(d, dtype=np.float32)
    for number in range(n):
        rows[number] = shared + draw.standard_normal(d, dtype=np.float32)
    for liar in range(n // 5):
        rows[n - 1 - liar] *= -10
    rows.flush()
    return rows.view(np.ndarray)


def limit(rule: str, n: int, d: int, machine: Machine) -> float:
    """Seconds at least: every update is read once and the result written; distances multiply all pairs of updates."""
    written_rows = n if rule == "nnm" else 1
    operations = n * (n + 1) * d if rule in BY_DISTANCES else 0
    return machine.limit(read=4 * n * d, written=4 * d * written_rows, operations=operations)
