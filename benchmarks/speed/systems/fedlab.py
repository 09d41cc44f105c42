"""FedLab 1.3.0: its serial trainer and synchronous server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.speed.contestant import Job
from benchmarks.speed.systems.network import BATCH, MOMENTUM, RATE, SmallNetwork, read_scans
from benchmarks.speed.systems.torchvision_ops import declare_operators

declare_operators()
from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer  # noqa: E402  (fails before)
from fedlab.contrib.algorithm.basic_server import SyncServerHandler  # noqa: E402

torch.set_num_threads(1)


@contextmanager
def rounds(scans: str) -> Iterator[Callable[[], None]]:
    hospitals = [TensorDataset(images, labels) for images, labels in read_scans(scans)]

    def loader(number: int, batch_size: int) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(hospitals[number], batch_size=batch_size, shuffle=True)

    trainer = SGDSerialClientTrainer(SmallNetwork(), len(hospitals), cuda=False)
    trainer.setup_dataset(SimpleNamespace(get_dataloader=loader))
    trainer.setup_optim(1, BATCH, RATE)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), RATE, momentum=MOMENTUM)
    server = SyncServerHandler(SmallNetwork(), 10**9, 1.0, cuda=False)
    server.num_clients = len(hospitals)

    def one_round() -> None:
        trainer.local_process(server.downlink_package, range(len(hospitals)))
        for package in trainer.uplink_package:
            server.load(package)

    yield one_round


JOBS: dict[str, Job] = {"rounds": rounds}
