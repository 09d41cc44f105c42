"""A federation on a Ray cluster of this machine, what can be done to it, and what it must have come to.

Every process here is of a cluster that this module started, and only such a process is ever killed, by its id.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # one machine, for minutes
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would have them wait for all else on a busy machine
os.environ.setdefault("RAY_raylet_start_wait_time_s", "240")  # on which a node may need more than Ray's 30, too

import numpy as np
import pandas as pd
import yaml
from psutil import NoSuchProcess, Process
from ray.cluster_utils import Cluster
from safetensors.numpy import load_file

from fedplatform.core.messages import HospitalState, Reply
from fedplatform.data.shards import Manifest
from fedplatform.experiments.engine import ServerRole, cohort_plan, local_training
from fedplatform.experiments.experiment import Experiment
from fedplatform.federated.cohort import CohortPlan, InProcessCohort
from fedplatform.learning.training import Trainer

PATIENCE_S = 900.0  # for anything that a loaded machine may take its time over
# A machine is dead after some ten seconds of silence, in place of a minute; a busy one answers sooner. So is a head.
IMPATIENT = {
    "gcs_rpc_server_reconnect_timeout_s": 15,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 3,
}
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # Ray's own, of every node
MEMORY = 80 * 2**20
SLOW_NETWORK = '''
import time
from dataclasses import dataclass

import torch

from fedplatform.learning.models import SmallCnn


@dataclass(frozen=True)
class SlowCnn:
    """A small network that takes its time over every batch, so that a round has a middle."""

    seconds: float

    def __call__(self, *, channels, num_classes, size):
        return torch.nn.Sequential(Waits(self.seconds), SmallCnn(width=4)(
            channels=channels, num_classes=num_classes, size=size))


class Waits(torch.nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, images):
        if self.training:
            time.sleep(self.seconds)
        return images
'''


def until(true: Callable[[], bool], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Wait for something. Raises TimeoutError, saying what did not come."""
    deadline = time.monotonic() + patience_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {patience_s:.0f} s for {what}")
        time.sleep(0.1)


def free_ports() -> dict[str, int]:
    """Ports for a node's agents; Ray's own choice has a node wait for them, and give up after 15 s."""
    names = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
    with ExitStack() as held:
        ports = {}
        for name in names:
            place = held.enter_context(socket.socket())
            place.bind(("127.0.0.1", 0))
            ports[name] = place.getsockname()[1]
    return ports


class Machines:
    """A Ray cluster: a head without CPUs, on which driver and server run, and nodes of one CPU for the hospitals."""

    def __init__(self, *, nodes: int) -> None:
        self._known: set[Process] = set()
        self._nodes: list[Any] = []
        self._cluster = Cluster()
        self._cluster.add_node(
            num_cpus=0, include_dashboard=False, object_store_memory=MEMORY, _system_config=IMPATIENT, **free_ports()
        )
        self._nodes += [self._fresh() for _ in range(nodes)]
        self.address: str = self._cluster.address

    def actors(self, kind: str) -> list[Process]:
        """The processes of this cluster's actors of a class, in the order of their ids."""
        found = [process for process in self._processes() if self._is_called(process, f"ray::{kind}")]
        return sorted(found, key=lambda process: process.pid)

    def kill_actor(self, kind: str, *, which: int = 0) -> int:
        """Kill one of them like a power cut would; returns its id."""
        until(lambda: len(self.actors(kind)) > which, f"the process of a {kind}")
        victim = self.actors(kind)[which]
        victim.kill()
        return victim.pid

    def hospitals_on(self, number: int) -> list[Process]:
        """The hospitals' actors on a node."""
        of_node = self._below(self._nodes[number])
        return [process for process in self.actors("HospitalHost") if process in of_node]

    def kill_node(self, number: int) -> None:
        """Kill a node and all that runs on it."""
        self._cluster.remove_node(self._nodes[number], allow_graceful=False)

    def join(self, number: int) -> None:
        """Let a fresh node join in its place."""
        self._nodes[number] = self._fresh()

    def kill_head(self) -> None:
        """Kill the head node: raylet, GCS, and with them all that the cluster knew."""
        self._processes()
        self._cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)

    def stop(self) -> None:
        """End what is left; Ray's agents would wait a minute for a head that was killed."""
        self._processes()
        self._cluster.shutdown()
        for process in self.left():
            if self._is_called(process, *AGENTS):
                process.kill()

    def left(self) -> list[Process]:
        """Processes of this cluster that still run."""
        return [process for process in self._known if process.is_running() and process.status() != "zombie"]

    def _fresh(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=MEMORY, **free_ports())

    def _processes(self) -> set[Process]:
        nodes = [self._cluster.head_node, *self._nodes] if self._cluster.head_node else self._nodes
        running = set().union(*(self._below(node) for node in nodes))
        self._known |= running
        return running

    @staticmethod
    def _is_called(process: Process, *names: str) -> bool:
        try:
            return process.cmdline()[0].startswith(names)
        except (NoSuchProcess, IndexError):
            return False

    @staticmethod
    def _below(node: Any) -> set[Process]:
        found: set[Process] = set()
        for infos in node.all_processes.values():
            for info in infos:
                try:
                    process = Process(info.process.pid)
                    found |= {process, *process.children(recursive=True)}
                except NoSuchProcess:
                    continue
        return found


class Driver:
    """``fedplatform run`` in a process of its own, in a folder of its own."""

    def __init__(self, folder: Path, arguments: list[str], *, prefix: tuple[str, ...] = ()) -> None:
        self.output = folder / f"driver-{len(list(folder.glob('driver-*')))}.txt"
        # One database for all runs beside each other: to make its tables takes longer than a run.
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder.parent / 'mlflow.db'}"}
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "fedplatform", "run", *arguments],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """Kill it like a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> str:
        """Wait for its end and return what it said; the exit status is in ``process.returncode``."""
        self.process.wait(timeout=PATIENCE_S)
        return self.said()

    def said(self) -> str:
        """What it has said so far."""
        return self.output.read_text()


class Run:
    """A small federation of slow hospitals, run by the command line in ``folder``, under the name ``run``."""

    def __init__(self, folder: Path, **settings: object) -> None:
        (folder / "slow_network.py").write_text(SLOW_NETWORK)
        self.folder = folder
        self.path = folder / "runs" / "run"
        self._settings = {
            "data": "fedplatform.data.lesions:Lesions(hospitals=5, patients_per_hospital=20)",
            "model": "slow_network.py:SlowCnn(seconds=0.3)",
            "size": 32,
            "hospitals": 5,
            "byzantine": 1,
            "f": 1,
            "partition": "iid",
            "root_size": 20,
            "batch_size": 16,
            **settings,
        }

    def start(self, address: str, *, prefix: tuple[str, ...] = ()) -> Driver:
        """Begin it on a cluster."""
        options = [word for key, value in self._settings.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        return Driver(self.folder, ["lesions", *options, "--name", "run", "--address", address], prefix=prefix)

    def resume(self, *where: str) -> Driver:
        """Go on with it, ``--address ADDRESS`` or ``--engine local``."""
        return Driver(self.folder, ["--resume", "run", *where])

    def finished_rounds(self) -> int:
        """The newest checkpoint's number."""
        numbers = [int(path.name[-6:]) for path in self.path.glob("checkpoints/round-*")]
        return max(numbers, default=0)

    def in_round(self, number: int, driver: Driver) -> None:
        """Wait until hospitals train in a round. Raises RuntimeError where the driver ends before."""

        def begun() -> bool:
            if driver.process.poll() is not None:
                raise RuntimeError(f"the driver ended before round {number}: {driver.said()}")
            return self.finished_rounds() >= number - 1

        until(begun, f"round {number}")
        time.sleep(0.5)

    def states(self) -> pd.DataFrame:
        """What became of whom: state and reason, by round and hospital."""
        table = pd.read_parquet(self.path / "hospitals.parquet")
        return table.set_index(["round_number", "hospital_id"])[["state", "reason"]]

    def weights(self) -> dict[str, bytes]:
        """The final model, bit for bit."""
        return {name: value.tobytes() for name, value in load_file(self.path / "global.safetensors").items()}

    def replayed(self) -> dict[str, bytes]:
        """What the final model has to be: the same rounds in one process, those absent who are recorded as absent."""
        here = Path.cwd()
        os.chdir(self.folder)  # the experiment names its network by a path from here
        try:
            experiment = Experiment.from_settings(yaml.safe_load((self.path / "experiment.yaml").read_text()))
            experiment = experiment.replace(model="slow_network.py:SlowCnn(seconds=0.0)")
        finally:
            os.chdir(here)
        shards = self.path / "shards"
        state_folder = self.folder / "replayed"
        states = self.states()["state"]
        arrived = states[states.isin([HospitalState.REPORTED, HospitalState.HOSTILE, HospitalState.UNJUDGED])].index
        cohort = Replaying(cohort_plan(experiment, shards, state_folder=state_folder), frozenset(arrived))
        role = ServerRole(experiment, shards, cohort)
        assert len(list(role.reports())) == experiment.rounds
        layout = Trainer(local_training(experiment, Manifest.load(shards))).layout
        shutil.rmtree(state_folder, ignore_errors=True)
        return {name: value.tobytes() for name, value in layout.unflatten(role.outcome().weights).items()}


class Replaying(InProcessCohort):
    """All hospitals in this process, each training only in the (round, hospital) pairs in which its update arrived."""

    def __init__(self, plan: CohortPlan, arrived: frozenset[tuple[int, str]]) -> None:
        super().__init__(plan)
        self._arrived = arrived

    def train(self, weights: np.ndarray, round_number: int, asked: Sequence[str] | None = None) -> Iterator[Reply]:
        """As its base, without those who were not there; no attack here waits for the others."""
        for name in self.hospital_ids if asked is None else asked:
            if (round_number, name) in self._arrived:
                trained = self._participants[name].train(weights, round_number)
                yield Reply(name, HospitalState.REPORTED, trained)
            else:
                yield Reply(name, HospitalState.CRASHED)
