"""Aggregation rules against every peer that has them, and the float64 definition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.speed.arena import LOOP, OURS, Result
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
MOST_BYTES = 8e9
# What no peer here has, or draws at random and so differs in: measured, and held against no definition.
OURS_ALONE = ("weighted_mean", "bulyan", "dnc", "signguard", "flame", "bucketing", "norm_clip")
BY_DISTANCES = ("krum", "multi_krum", "geometric_median", "nnm", "bulyan", "dnc", "signguard", "flame")
PEERS = ("byzfl", "byzpy", "flower", "krum", "qora")
SIZES = ((10, 1_000_000), (32, 1_000_000), (100, 1_000_000), (10, 11_000_000))
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
            systems = (OURS,) if name in OURS_ALONE else (OURS, *PEERS, LOOP)
            too_large = [system for system in systems if held_by(system, name, n, d, f) > MOST_BYTES]
            results = bench.arena.turns(
                name,
                [system for system in systems if system not in too_large],
                repeats=bench.repeats,
                arguments={"deltas": str(file), "f": f, "radius": radius},
                keep_result=name not in OURS_ALONE,
                spare_the_slow=True,
            )
            results += [Result(system, cannot=f"it would hold over {MOST_BYTES / 1e9:.0f} GB") for system in too_large]
            errors = {} if name in OURS_ALONE else errors_of(results, definitions(name))
            limit_s = limit(name, n, d, bench.machine)
            bench.add(f"rules/{name}", results, n=n, d=d, hospitals=n, limit_s=limit_s, errors=errors)
            done += 1
        file.unlink()
    bench.arena.rest((*PEERS, LOOP))


def held_by(system: str, rule: str, n: int, d: int, f: int) -> float:
    """Bytes that a system holds beside the updates, where that is more than a few times the updates themselves."""
    return 4.0 * n * (n - f) * d if (system, rule) == ("byzfl", "nnm") else 0.0


def errors_of(results: Sequence[Result], right: np.ndarray) -> dict[str, float]:
    """The largest distance of each system's result to the right one, in units of its largest entry."""
    scale = float(np.abs(right).max())
    return {
        result.system: float(np.abs(result.result - right).max()) / scale
        for result in results
        if result.result is not None
    }


def sizes(bench: Bench) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """n, d and the rules that are measured there."""
    if bench.tiny:
        yield 10, 20_000, (*RULES, *OURS_ALONE)
        return
    if bench.quick:
        yield *SIZES[0], RULES
        return
    for n, d in SIZES:
        yield n, d, ON_ELEVEN_MILLION if d > 10**7 else (*RULES, *OURS_ALONE)


def written(file: Path, n: int, d: int) -> np.ndarray:
    """Updates (n, d) float32 in a file: honest ones share a direction, and the last fifth of them lies."""
    draw = np.random.default_rng(0)
    rows = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(n, d))
    shared = draw.standard_normal(d, dtype=np.float32)
    for number in range(n):
        rows[number] = shared + draw.standard_normal(d, dtype=np.float32)
    for attacker in range(n // 5):
        rows[n - 1 - attacker] *= -10
    rows.flush()
    return rows.view(np.ndarray)


def limit(rule: str, n: int, d: int, machine: Machine) -> float:
    """Seconds at least: every update is read once and the result written; distances multiply all pairs of updates."""
    written_rows = {"nnm": n, "norm_clip": n, "bucketing": -(-n // 2)}.get(rule, 1)
    operations = n * (n + 1) * d if rule in BY_DISTANCES else 0
    return machine.limit(read=4 * n * d, written=4 * d * written_rows, operations=operations)
