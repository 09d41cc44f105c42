"""Where systems take turns: a process each, the same job, one repeat of everybody after the other."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.speed.contestant import MEGABYTE, NO_SUCH_JOB, cpu_of

ROOT = Path(__file__).parents[2]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
OURS, ON_RAY, LOOP = "ours", "ours_on_ray", "plain"  # textbook code is compared with, but nobody's product
NO_PEERS = (OURS, ON_RAY, LOOP)
SLOW_S, HOPELESS = 0.5, 1.5
EQUAL = {"RAY_worker_niceness": "0"}  # or Ray leaves its workers less of a busy machine than a loop gets
QUIET = {
    "RAY_DEDUP_LOGS": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONWARNINGS": "ignore",
}


class Cannot(Exception):  # noqa: N818 - an answer, not an error
    """A system cannot do what it was asked for, and says why."""


class Contestant:
    """The other end of :mod:`benchmarks.speed.contestant`. Raises :class:`Cannot` where the system does not import."""

    def __init__(self, system: str, *, python: Path = Path(sys.executable), log: Path) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.speed.contestant", system],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **ONE_THREAD, **QUIET, **EQUAL, "PYTHONPATH": path},
                cwd=log.parent,
            )
        try:
            self.answer()
        except Cannot:
            self.close()
            raise

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """Send an order and wait for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Cannot(f"its process ended with status {self._process.wait()}") from None
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Cannot(f"its process ended with status {self._process.wait()}")
        said: dict[str, Any] = json.loads(line)
        if "cannot" in said:
            raise Cannot(said["cannot"])
        return said

    def family(self) -> list[psutil.Process]:
        """The process and all that it started, and they."""
        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]

    def memory_mb(self) -> float:
        """What they all hold together now, shared pages counted once, in megabytes."""
        total = 0
        for process in self.family():
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total / MEGABYTE

    def cpu_s(self) -> float:
        """CPU seconds of them all since they were started."""
        return cpu_of(self.family())

    @contextmanager
    def watched(self) -> Iterator[list[float]]:
        """A list to which :meth:`memory_mb` is added twice a second while the block lasts, and at its end."""
        seen: list[float] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                seen.append(self.memory_mb())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield seen
            seen.append(self.memory_mb())
        finally:
            over.set()
            thread.join()

    def close(self) -> None:
        """Let the process take down what it started, and end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@dataclass(frozen=True)
class Result:
    """What a system's repeats cost, figure by figure in the order of running; or ``cannot``, why there are none."""

    system: str
    costs: dict[str, list[float]] = field(default_factory=dict)
    result: np.ndarray | None = None
    cannot: str = ""

    def median(self, figure: str) -> float:
        """The median over the repeats, NaN where it was not measured."""
        return statistics.median(self.costs[figure]) if self.costs.get(figure) else float("nan")


@dataclass
class Arena:
    """Starts systems when they are first needed, each once, and lets them take turns.

    ``pythons`` maps a system to the interpreter of its environment, or to the reason why it has none. A system may
    bring a job of its own, ``ours/multi_krum``, to be compared with another of its jobs; it has its own process then.
    """

    folder: Path
    pythons: Mapping[str, Path | str]
    say: Callable[[str], object]
    _contestants: dict[str, Contestant | Cannot] = field(default_factory=dict)

    def contestant(self, system: str) -> Contestant:
        """The running process of a system."""
        if system not in self._contestants:
            module = system.partition("/")[0]
            python = self.pythons[module]
            try:
                if isinstance(python, str):
                    raise Cannot(python)
                self._contestants[system] = Contestant(module, python=python, log=self.folder / f"{module}.log")
            except Cannot as reason:
                self._contestants[system] = reason
        found = self._contestants[system]
        if isinstance(found, Cannot):
            raise found
        return found

    def turns(
        self,
        job: str,
        systems: Sequence[str],
        *,
        repeats: int,
        arguments: Mapping[str, Any],
        keep_result: bool = False,
        spare_the_slow: bool = False,
    ) -> list[Result]:
        """Everybody who is here warms up once, then all take turns ``repeats`` times.

        With ``spare_the_slow``, who needed over ``SLOW_S`` CPU seconds and ``HOPELESS`` times the best of the others
        cannot be the best peer and takes one turn, so that the rest have time for theirs.
        """
        ready: dict[str, Contestant] = {}
        costs: dict[str, dict[str, list[float]]] = {}
        refused: dict[str, str] = {}
        warm: dict[str, float] = {}

        def attempt(system: str, action: Callable[[], None]) -> None:
            try:
                action()
            except Cannot as reason:
                refused[system] = str(reason)
                ready.pop(system, None)

        def prepare(system: str) -> None:
            contestant = self.contestant(system)
            contestant.ask("prepare", job=system.partition("/")[2] or job, arguments=dict(arguments))
            warm[system] = contestant.ask("run")["cpu_s"]
            ready[system] = contestant
            costs[system] = {}

        def turn(system: str) -> None:
            for figure, value in ready[system].ask("run").items():
                costs[system].setdefault(figure, []).append(value)

        systems = [system for system in systems if system.partition("/")[0] in self.pythons]
        for system in systems:
            attempt(system, lambda system=system: prepare(system))  # type: ignore[misc]
        best = min((cost for system, cost in warm.items() if not system.startswith(OURS)), default=0.0)
        hopeless = {
            system
            for system, cost in warm.items()
            if spare_the_slow and not system.startswith(OURS) and cost > max(SLOW_S, HOPELESS * best)
        }
        for repeat in range(repeats):
            for system in [system for system in ready if repeat == 0 or system not in hopeless]:
                attempt(system, lambda system=system: turn(system))  # type: ignore[misc]
        results = []
        for system in systems:
            if system in refused:
                if refused[system] != NO_SUCH_JOB:
                    results.append(Result(system, cannot=refused[system]))
                continue
            array = self._result_of(ready[system]) if keep_result else None
            ready[system].ask("close")
            results.append(Result(system, costs[system], array))
        return results

    def _result_of(self, contestant: Contestant) -> np.ndarray:
        file = self.folder / "result.npy"
        contestant.ask("save", file=str(file))
        array: np.ndarray = np.load(file)
        file.unlink()
        return array

    def rest(self, systems: Sequence[str]) -> None:
        """End the processes of these systems; they are started again when they are needed again."""
        for system in systems:
            found = self._contestants.pop(system, None)
            if isinstance(found, Contestant):
                found.close()

    @contextmanager
    def opened(self) -> Iterator[Arena]:
        """An arena whose processes end with the block."""
        try:
            yield self
        finally:
            self.rest(list(self._contestants))
