"""Weights on their way: a broadcast to ten hospitals and ten replies, against copying the same bytes."""

from __future__ import annotations

from benchmarks.speed.arena import ON_RAY
from benchmarks.speed.bench import Bench

D, HOSPITALS = 11_000_000, 10


def measure(bench: Bench) -> None:
    """The limit writes the broadcast and each reply into shared memory once, and reads each reply once."""
    if bench.has("weights") or bench.tiny:
        return
    d = D // 11 if bench.quick else D
    bench.progress("weights", 0, 1, f"a broadcast of {d:,} numbers and {HOSPITALS} replies")
    systems = (ON_RAY, f"{ON_RAY}/state_dicts", "flower")
    results = bench.arena.turns("weights", systems, repeats=bench.repeats, arguments={"d": d, "hospitals": HOSPITALS})
    bench.arena.rest(systems)
    moved = 4 * d * (1 + HOSPITALS)
    limit_s = bench.machine.limit(read=2 * moved, written=2 * moved)
    bench.add("weights", results, n=HOSPITALS, d=d, hospitals=HOSPITALS, limit_s=limit_s)
