"""This project on Ray: hospitals in as many actors as there are cores, the server's part in this process.

A run's own server is an actor, too, and sends its reports ahead of whoever reads them; here it waits its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
import torch

from actors.cluster.joining import LOCAL, join
from actors.cohort import RayCohort
from actors.engine import send_by_value
from benchmarks.speed.contestant import Job
from benchmarks.speed.systems import moving
from benchmarks.speed.systems.federation import prepared
from fedplatform.experiments.checkpoint import CheckpointFolder, Checkpoints
from fedplatform.experiments.engine import ServerRole, cohort_plan

torch.set_num_threads(1)


@contextmanager
def rounds(scans: str) -> Iterator[Callable[[], object]]:
    join(LOCAL)
    try:
        with prepared(scans) as (experiment, shards, state):
            send_by_value(experiment)
            folder = CheckpointFolder.of(state.parent / "checkpoints", experiment)
            checkpoints = Checkpoints.open(folder, experiment.server_rule)
            plan = cohort_plan(experiment, shards, state_folder=state, launch=checkpoints.launch)
            num_hosts = min(int(ray.cluster_resources()["CPU"]), experiment.hospitals)
            cohort = RayCohort(plan, num_hosts=num_hosts, deadline_s=experiment.deadline_s)
            reports = ServerRole(experiment, shards, cohort, checkpoints=checkpoints).reports()
            yield lambda: next(reports) and None
            cohort.close()
    finally:
        ray.shutdown()


JOBS: dict[str, Job] = {"rounds": rounds, **moving.JOBS}
