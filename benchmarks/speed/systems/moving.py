"""An echo in actors: weights go out to all hospitals, a reply of the same size comes back from each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import ray
import torch

from actors.cluster.joining import LOCAL, join
from actors.cohort import RayCohort
from actors.hospital import HospitalHost
from benchmarks.speed.contestant import MEGABYTE, Job
from fedplatform.core.messages import Update
from fedplatform.federated.byzantine import Adversary
from fedplatform.federated.cohort import CohortPlan
from fedplatform.federated.transport import TRANSPORTS, TransportName


class Negating:
    """A hospital that trains in no time: an update is the weights' negative, a new array as after training."""

    def train(self, weights: np.ndarray, round_number: int, **_: object) -> Update:
        return Update("", round_number, -weights, 100, 0.0, 0.0)


class Echo(HospitalHost):
    """A host of such hospitals."""

    def __init__(self, plan: CohortPlan, hospital_ids: tuple[str, ...]) -> None:
        self._participants = {name: Negating() for name in hospital_ids}
        self._transport = plan.transport
        self._stopped_round = 0


@contextmanager
def as_messages(
    numbers: str, hospitals: int, *, transport: TransportName = "exact"
) -> Iterator[Callable[[], dict[str, float]]]:
    """As in a round of this project: one broadcast by reference, updates as NumPy vectors, received into one matrix."""
    weights = np.load(numbers)
    reply_bytes = sum(part.nbytes for part in TRANSPORTS[transport].pack(-weights).values())
    join(LOCAL)
    try:
        names = [f"hospital-{number:02d}" for number in range(hospitals)]
        plan = CohortPlan(
            dict.fromkeys(names),  # type: ignore[arg-type]
            (),
            None,  # type: ignore[arg-type]
            Adversary((), None, hospitals),
            None,  # type: ignore[arg-type]
            transport=TRANSPORTS[transport],
        )
        num_hosts = min(int(ray.cluster_resources()["CPU"]), hospitals)
        cohort = RayCohort(plan, num_hosts=num_hosts, deadline_s=600, host=Echo)

        def exchange() -> dict[str, float]:
            received = torch.empty(hospitals, weights.size)
            for row, reply in zip(received, cohort.train(weights, 1), strict=True):
                assert reply.update is not None
                row.copy_(torch.from_numpy(np.array(reply.update.delta)))
            return {"figure": reply_bytes / MEGABYTE}

        yield exchange
        cohort.close()
    finally:
        ray.shutdown()


@contextmanager
def as_state_dicts(numbers: str, hospitals: int) -> Iterator[Callable[[], object]]:
    """What is written first: a state dict of tensors as an argument of every call, one of replies from each."""
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:

        @ray.remote(num_cpus=1)
        class Hospital:
            def train(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
                torch.set_num_threads(1)
                return {name: -value for name, value in weights.items()}

        actors: list[Any] = [Hospital.remote() for _ in range(int(ray.cluster_resources()["CPU"]))]
        weights = layers(numbers)

        def exchange() -> torch.Tensor:
            sent = ray.put(weights)
            asked = [actors[number % len(actors)].train.remote(sent) for number in range(hospitals)]
            received = [torch.cat([value.reshape(-1) for value in reply.values()]) for reply in ray.get(asked)]
            return torch.stack(received)[:, :1].sum()

        yield exchange
    finally:
        ray.shutdown()


def layers(numbers: str) -> dict[str, torch.Tensor]:
    """These numbers as the layers of a network have them: twenty of equal size."""
    parts = torch.from_numpy(np.load(numbers)).chunk(20)
    return {f"layer{number}.weight": part.clone() for number, part in enumerate(parts)}


JOBS: dict[str, Job] = {
    "weights": as_messages,
    "lossless": partial(as_messages, transport="lossless"),
    "half": partial(as_messages, transport="half"),
    "state_dicts": as_state_dicts,
}
