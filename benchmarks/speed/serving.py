"""Answers a second and their slowest hundredth: the endpoint against the same classifier behind plain servers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.speed.arena import OURS, ROOT, Result
from benchmarks.speed.bench import Bench

SYSTEMS = (OURS, "plain/uvicorn", "plain/ray_serve")
COUNT = 400
SIZE = 64
DATA = "fedplatform.data.lesions:Lesions(hospitals=5, patients_per_hospital=20)"
RUN = (
    *("run", "lesions", "--data", DATA, "--size", str(SIZE), "--hospitals", "5", "--byzantine", "0", "--rule", "mean"),
    *("--rounds", "1", "--local-epochs", "1", "--root-size", "20", "--engine", "local"),
)
DEFEND = (
    *("--autoencoder", "masked_autoencoder(width=16,depth=1,decoder_width=16,decoder_depth=1)"),
    *("--sensor", "small_cnn(width=4)", "--purifier", "noise_predictor(t_max=200)"),
    *("--autoencoder-rounds", "1", "--purifier-rounds", "1", "--sensor-rounds", "1", "--tuning-rounds", "1"),
    *("--engine", "local"),
)


def measure(bench: Bench) -> None:
    """Eight users, the bare classifier; how well it was trained does not change how long it takes."""
    if bench.has("serving") or bench.tiny:
        return
    bench.progress("serving", 0, 3, "training a small run to serve")
    folder, version, hospital = published(bench.folder / "runs")
    bench.progress("serving", 1, 3, "endpoints under load")
    count = COUNT // 4 if bench.quick else COUNT
    results = bench.arena.turns(
        "serving",
        SYSTEMS,
        repeats=bench.repeats,
        arguments={
            "run": str(folder),
            "version": version,
            "hospital": hospital,
            "size": SIZE,
            "count": count,
        },
    )
    bench.arena.rest(SYSTEMS)
    bench.add("serving", results, n=count, hospitals=1, unit="answers/s")
    bench.add("serving/p99", [_of(result, "p99_ms") for result in results], n=count, hospitals=1, unit="ms")


def published(runs: Path) -> tuple[Path, str, str]:
    """A run with its bare classifier published: its folder, the version, a hospital."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    publish = (
        "from pathlib import Path; from fedplatform.experiments.defence.load import DefendedRun; "
        "from fedplatform.serving.publishing import publish_run; import sys; run = DefendedRun(Path(sys.argv[1])); "
        "print(publish_run(run, defence='no_defence'), run.tested[0])"
    )
    runs.mkdir(parents=True, exist_ok=True)
    folder = runs / "served"
    for words in (
        ["-m", "fedplatform", *RUN, "--name", folder.name, "--runs", str(runs)],
        ["-m", "fedplatform", "defend", str(folder), *DEFEND],
        ["-c", publish, str(folder)],
    ):
        done = subprocess.run(
            [sys.executable, *words], env=environment, cwd=runs, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"no run to serve: {done.stderr.strip()[-500:]}")
    version, hospital = done.stdout.split()[-2:]
    return folder, version, hospital


def _of(result: Result, figure: str) -> Result:
    """The same repeats, judged by another figure."""
    return replace(result, costs={"figure": result.costs.get(figure, [])})
