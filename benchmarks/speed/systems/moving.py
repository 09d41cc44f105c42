"""An echo in actors: weights go out to all hospitals, a reply of the same size comes back from each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
import torch

from actors.cohort import RayCohort
from actors.hospital import HospitalHost
from actors.joining import LOCAL, join
from benchmarks.speed.contestant import Job
from fedplatform.attacks.byzantine import Liars
from fedplatform.cohort import CohortPlan
from fedplatform.messages import Update


class Echo(HospitalHost):
    """A host whose hospitals train in no time: an update is the weights' negative, a new array as after training."""

    def __init__(self, plan: CohortPlan, hospital_ids: tuple[str, ...]) -> None:
        self._participants = {}
        self._stopped_round = 0

    @ray.method(concurrency_group="work")
    def train(self, hospital_id: str, weights: np.ndarray, round_number: int) -> Update:
        return Update(hospital_id, round_number, -weights, 100, 0.0, 0.0)


@contextmanager
def as_messages(d: int, hospitals: int) -> Iterator[Callable[[], object]]:
    """As in a round of this project: one broadcast by reference, updates as NumPy vectors, received into one matrix."""
    join(LOCAL)
    try:
        names = [f"hospital-{number:02d}" for number in range(hospitals)]
        plan = CohortPlan(dict.fromkeys(names), None, Liars((), None, hospitals), None)  # type: ignore[arg-type]
        num_hosts = min(int(ray.cluster_resources()["CPU"]), hospitals)
        cohort = RayCohort(plan, num_hosts=num_hosts, deadline_s=600, host=Echo)
        weights = np.random.default_rng(0).standard_normal(d, dtype=np.float32)

        def exchange() -> torch.Tensor:
            replies = cohort.train(weights, 1)
            received = torch.empty(hospitals, d)
            for row, reply in zip(received, replies, strict=True):
                assert reply.update is not None
                row.copy_(torch.from_numpy(np.array(reply.update.delta)))
            return received[:, :1].sum()

        yield exchange
        cohort.close()
    finally:
        ray.shutdown()


@contextmanager
def as_state_dicts(d: int, hospitals: int) -> Iterator[Callable[[], object]]:
    """What is written first: a state dict of tensors as an argument of every call, one of replies from each."""
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:

        @ray.remote(num_cpus=1)
        class Hospital:
            def train(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
                torch.set_num_threads(1)
                return {name: -value for name, value in weights.items()}

        actors: list[Any] = [Hospital.remote() for _ in range(int(ray.cluster_resources()["CPU"]))]
        weights = layers(d)

        def exchange() -> torch.Tensor:
            sent = ray.put(weights)
            asked = [actors[number % len(actors)].train.remote(sent) for number in range(hospitals)]
            received = [torch.cat([value.reshape(-1) for value in reply.values()]) for reply in ray.get(asked)]
            return torch.stack(received)[:, :1].sum()

        yield exchange
    finally:
        ray.shutdown()


def layers(d: int) -> dict[str, torch.Tensor]:
    """About d numbers as the layers of a network have them: twenty of equal size."""
    return {f"layer{number}.weight": torch.randn(d // 20) for number in range(20)}


JOBS: dict[str, Job] = {"weights": as_messages, "state_dicts": as_state_dicts}
