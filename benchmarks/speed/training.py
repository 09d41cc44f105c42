"""The whole Br35H recipe by phase, and where the training of its classifier spends its time."""

from __future__ import annotations

from benchmarks.speed.arena import OURS, Result
from benchmarks.speed.bench import Bench
from fedplatform.data.error import DataError
from fedplatform.data.parquet import ParquetSource
from fedplatform.data.sources import open_source

WHOLE_SCANS = 3000
SCANS, QUICK_SCANS = 600, 200
PROFILE = "profile_"
WHOLE = "whole_"


def measure(bench: Bench) -> None:
    """On Br35H where it is there, else on as many of the embedded lesions. A phase's ``figure`` is the whole recipe's.

    That is: its rounds and its scans, as far as time is in proportion to them.
    """
    if bench.has("training") or bench.tiny:
        return
    scans = QUICK_SCANS if bench.quick else SCANS
    arguments = {"data": br35h(), "scans": scans}
    bench.progress("training", 0, 2, f"the recipe br35h_robust on {scans} of {WHOLE_SCANS:,} scans, phase by phase")
    costs = once(bench, "recipe", arguments)
    phases = [name for name in costs if f"{WHOLE}{name}" in costs]
    rows = [Result("ours", {name: costs[name] for name in ("cpu_s", "wall_s", "extra_mb")})]
    larger = WHOLE_SCANS / scans
    for phase in phases:
        rows.append(Result(f"ours/{phase}", {"cpu_s": costs[phase], "figure": [larger * costs[WHOLE + phase][0]]}))
    bench.add("training", rows, n=scans, hospitals=10, unit="s, whole recipe")
    bench.progress("training", 1, 2, "its profile")
    found = once(bench, "profile", arguments)
    bench.arena.rest((OURS,))
    shares = {name.removeprefix(PROFILE): values for name, values in found.items() if name.startswith(PROFILE)}
    bench.add(
        "training/profile",
        [Result(name, {"figure": values}) for name, values in shares.items()],
        n=scans,
        hospitals=10,
        unit="of the time",
    )


def once(bench: Bench, job: str, arguments: dict[str, object]) -> dict[str, list[float]]:
    """What a job costs that is too long to be warmed up and repeated."""
    contestant = bench.arena.contestant(OURS)
    contestant.ask("prepare", job=job, arguments=arguments)
    return {figure: [value] for figure, value in contestant.ask("run").items()}


def br35h() -> str:
    """The file of the data set, empty where it is not here."""
    try:
        source = open_source("br35h")
    except DataError:
        return ""
    assert isinstance(source, ParquetSource)
    return str(source.path.resolve())
