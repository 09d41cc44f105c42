"""One system in a process of its own, ours and the peers' alike: ``python -m benchmarks.speed.contestant NAME``.

Orders come in as lines of JSON and answers go out as such: ``prepare`` a job, ``run`` it once and say what it cost,
``save`` what it gave. A job is a context manager that yields the function to be timed. This file imports nothing but
NumPy and psutil, for it also runs where fedplatform is not installed.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

MEGABYTE = 1e6
NO_SUCH_JOB = "it has none"
Job = Callable[..., AbstractContextManager[Callable[[], Any]]]


class Stage:
    """The job that is prepared, and what its last run gave."""

    def __init__(self, jobs: dict[str, Job]) -> None:
        self._jobs = jobs
        self._open = ExitStack()
        self._run: Callable[[], Any] | None = None
        self._result: Any = None

    def prepare(self, job: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.close()
        if job not in self._jobs:
            return {"cannot": NO_SUCH_JOB}
        self._run = self._open.enter_context(self._jobs[job](**arguments))
        return {}

    def run(self) -> dict[str, Any]:
        assert self._run is not None
        self._result = None
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # or what an earlier run freed would hide what this one takes
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        others, cpu, start = family_cpu(), time.process_time(), time.perf_counter()
        self._result = self._run()
        wall, own = time.perf_counter() - start, time.process_time() - cpu
        cost = {"cpu_s": own + family_cpu() - others, "wall_s": wall, "extra_mb": memory("VmHWM") - before}
        return {**cost, **(self._result if isinstance(self._result, dict) else {})}

    def save(self, file: str) -> dict[str, Any]:
        np.save(file, np.asarray(self._result))
        return {}

    def close(self) -> dict[str, Any]:
        self._run = self._result = None
        self._open.close()
        return {}


def memory(field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak since it was last cleared) of this process, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1]) * 1024 / MEGABYTE


def family_cpu() -> float:
    """CPU seconds so far of all processes that this one started, and they, such as Ray's."""
    return cpu_of(psutil.Process().children(recursive=True))


def cpu_of(processes: Iterable[psutil.Process]) -> float:
    """CPU seconds so far of those processes that are still there."""
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def main(system: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer

    def answer(said: dict[str, Any]) -> None:
        answers.write(json.dumps(said) + "\n")

    try:
        stage = Stage(importlib.import_module(f"benchmarks.speed.systems.{system}").JOBS)
    except Exception as error:
        answer({"cannot": said_of(error)})
        return
    answer({})
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer(getattr(stage, order.pop("do"))(**order))
        except Exception as error:
            answer({"cannot": said_of(error)})
    stage.close()


def said_of(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


if __name__ == "__main__":
    main(sys.argv[1])
