"""Scans purified a second against a plain DiffPure loop over the same network, and the detector before it."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.speed.arena import OURS
from benchmarks.speed.bench import Bench

SIZE, SCANS, DEPTH = 64, 16, 150
WORKS = {
    "purification": (OURS, "ours/purify_in_pytorch", "plain/diffpure"),
    "detection": (OURS, "ours/examine_in_pytorch"),
    "defence": (OURS, "ours/whole_in_pytorch"),
}
JOBS = {"purification": "purify", "detection": "examine", "defence": "whole"}


def measure(bench: Bench) -> None:
    """Batches of 16 scans of 64 pixels from depth 150 of 1000; the figure is scans a CPU second."""
    scans, depth = (2, 3) if bench.tiny else (SCANS, DEPTH)
    for number, (work, systems) in enumerate(WORKS.items()):
        bench.progress("purification", number, len(WORKS), work)
        if bench.has(work):
            continue
        results = bench.arena.turns(
            JOBS[work], systems, repeats=bench.repeats, arguments={"size": SIZE, "scans": scans, "depth": depth}
        )
        with_figure = [
            replace(result, costs={**result.costs, "figure": [scans / cpu for cpu in result.costs.get("cpu_s", [])]})
            for result in results
        ]
        bench.add(work, with_figure, n=scans, unit="scans/s")
    bench.arena.rest(tuple({system for systems in WORKS.values() for system in systems}))
