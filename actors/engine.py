"""The Ray engine: starts or joins Ray, places the server and its hospitals, and streams the reports back."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.cohort import CohortError, cause
from actors.server import Server
from fedplatform.aggregation import Mixed
from fedplatform.engine import Outcome, RunningFederation
from fedplatform.experiment import Experiment
from fedplatform.messages import RoundReport
from fedplatform.trust import OptiGradTrust


def start_ray(address: str) -> bool:
    """Start Ray, or join the cluster at ``address``; says whether that was still to do."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return True


class RayFederation:
    """A federation that runs in a server actor."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def reports(self) -> Iterator[RoundReport]:
        """Reports as the server sends them."""
        for ref in self._server.reports.options(num_returns="streaming").remote():
            yield ray.get(ref)

    def outcome(self) -> Outcome:
        """The outcome of the finished federation."""
        outcome: Outcome = ray.get(self._server.outcome.remote())
        return outcome


class RayEngine:
    """Hospitals, liars and server as Ray actors.

    ``address`` is a running cluster's, or ``local`` to start one here; ``num_hosts`` how many actors the hospitals
    share, by default as many as there are CPUs, and never more than there are hospitals.
    """

    def __init__(self, *, address: str = "local", num_hosts: int | None = None) -> None:
        self._num_hosts = num_hosts
        self._started = start_ray(address)

    @contextmanager
    def launch(
        self, experiment: Experiment, shards: Path, *, state_folder: Path, start: np.ndarray | None = None
    ) -> Iterator[RunningFederation]:
        """Place the actors, and take them down on the way out."""
        send_by_value(experiment)
        cpus = int(ray.cluster_resources().get("CPU", 1))
        num_hosts = min(self._num_hosts or cpus, experiment.hospitals)
        if num_hosts > cpus:
            raise CohortError(f"{num_hosts} hospital actors need as many CPUs, got {cpus}")
        remote: Any = ray.remote(num_cpus=0)
        server = remote(Server).remote(
            experiment, shards.resolve(), state_folder=state_folder.resolve(), num_hosts=num_hosts, start=start
        )
        try:
            yield RayFederation(server)
        except (RayActorError, RayTaskError) as error:
            raise CohortError(f"the server actor failed: {cause(error)}") from error
        finally:
            with suppress(RayError):  # it is going down either way, and the first error is the one to show
                ray.get(server.close.remote(), timeout=10)
            ray.kill(server)

    def close(self) -> None:
        """Shut Ray down if this engine started it."""
        if self._started:
            ray.shutdown()


def send_by_value(experiment: Experiment) -> None:
    """Let a user's own rule, attack, model or data set travel with its code: the actors need not have its file."""
    rule = experiment.rule
    rules: list[object] = [rule]
    if isinstance(rule, Mixed):
        rules = [*rule.mixers, rule.rule]
    elif isinstance(rule, OptiGradTrust):
        rules = [rule, rule.scorer]
    data = (experiment.data, experiment.partition, experiment.augmentation)
    training = (experiment.model, experiment.algorithm, experiment.objective)
    for part in (*rules, *data, *training, experiment.attack):
        module = sys.modules[getattr(part, "__module__", None) or type(part).__module__]
        if module.__name__.partition(".")[0] not in ("fedplatform", "builtins", "__main__"):
            ray.cloudpickle.register_pickle_by_value(module)
