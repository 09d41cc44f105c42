"""Apple's pfl 0.6.0: its simulated backend and federated averaging."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel

from benchmarks.speed.contestant import Job
from benchmarks.speed.systems.gate import Gate
from benchmarks.speed.systems.network import BATCH, RATE, SmallNetwork, read_scans

torch.set_num_threads(1)


class Trained(SmallNetwork):
    """The network with the two methods that pfl asks for."""

    def loss(self, images: torch.Tensor, labels: torch.Tensor, eval: bool = False) -> torch.Tensor:
        self.eval() if eval else self.train()
        return torch.nn.functional.cross_entropy(self(images), labels)

    def metrics(self, images: torch.Tensor, labels: torch.Tensor, eval: bool = True) -> dict[str, Any]:
        return {}


class Turns(TrainingProcessCallback):  # type: ignore[misc]
    """Waits at the gate after every round."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def on_train_begin(self, *, model: Any) -> Any:
        self._gate.pass_through()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, **_: Any) -> tuple[bool, Any]:
        self._gate.pass_through()
        return False, Metrics()


@contextmanager
def rounds(scans: str) -> Iterator[Callable[[], None]]:
    hospitals = dict(enumerate(read_scans(scans)))
    users = FederatedDataset(
        lambda number: Dataset([*hospitals[number]], user_id=str(number)),
        get_user_sampler("minimize_reuse", list(hospitals)),
    )
    network = Trained()
    model = PyTorchModel(
        network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
    )
    gate = Gate()

    def everything() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        FederatedAveraging().run(
            NNAlgorithmParams(
                central_num_iterations=10**9,
                evaluation_frequency=10**9,
                train_cohort_size=len(hospitals),
                val_cohort_size=0,
            ),
            SimulatedBackend(training_data=users, val_data=None),
            model,
            NNTrainHyperParams(
                local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH, local_max_grad_norm=None
            ),
            NNEvalHyperParams(local_batch_size=BATCH),
            [Turns(gate)],
        )

    with gate.opened(everything) as one_round:
        yield one_round


JOBS: dict[str, Job] = {"rounds": rounds}
