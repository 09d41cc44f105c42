"""ByzFL 0.0.11."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.speed.contestant import Job
from benchmarks.speed.systems.network import BATCH, CLASSES, MOMENTUM, RATE, SmallNetwork, read_scans
from benchmarks.speed.systems.torchvision_ops import declare_operators
from benchmarks.speed.systems.updates import opened

declare_operators()
import byzfl  # noqa: E402  (fails before)
from byzfl.fed_framework import models  # noqa: E402

torch.set_num_threads(1)


def rule(build: Callable[[int, float], Any]) -> Job:
    @contextmanager
    def job(deltas: str, f: int, radius: float) -> Iterator[Callable[[], torch.Tensor]]:
        rows = torch.from_numpy(opened(deltas))
        yield lambda: build(f, radius)(rows)  # a new one, for its centred clipping goes on from where it was

    return job


JOBS: dict[str, Job] = {
    "mean": rule(lambda f, radius: byzfl.Average()),
    "median": rule(lambda f, radius: byzfl.Median()),
    "trimmed_mean": rule(lambda f, radius: byzfl.TrMean(f=f)),
    "krum": rule(lambda f, radius: byzfl.Krum(f=f)),
    "multi_krum": rule(lambda f, radius: byzfl.MultiKrum(f=f)),
    "geometric_median": rule(lambda f, radius: byzfl.GeometricMedian()),
    "centered_clipping": rule(lambda f, radius: byzfl.CenteredClipping(L=1, tau=radius)),
    "nnm": rule(lambda f, radius: byzfl.NNM(f=f)),
}


@contextmanager
def rounds(scans: str) -> Iterator[Callable[[], None]]:
    """Its clients and server in a loop; its loaders hand out batches, and the averages are of weights."""
    models.SmallNetwork = SmallNetwork
    shared = {
        "model_name": "SmallNetwork",
        "device": "cpu",
        "optimizer_name": "SGD",
        "optimizer_params": {"momentum": MOMENTUM},
        "learning_rate": RATE,
        "weight_decay": 0.0,
        "milestones": [],
        "learning_rate_decay": 1.0,
    }
    loaders = [
        DataLoader(TensorDataset(images, labels), batch_size=BATCH, shuffle=True)
        for images, labels in read_scans(scans)
    ]
    clients = [
        byzfl.Client(
            shared
            | {
                "loss_name": "CrossEntropyLoss",
                "LabelFlipping": False,
                "nb_labels": CLASSES,
                "momentum": 0.0,
                "training_dataloader": loader,
                "store_per_client_metrics": False,
            }
        )
        for loader in loaders
    ]
    server = byzfl.Server(
        shared
        | {"test_loader": loaders[0], "aggregator_info": {"name": "Average", "parameters": {}}, "pre_agg_list": []}
    )

    def one_round() -> None:
        weights = server.get_flat_parameters()
        for client, loader in zip(clients, loaders, strict=True):
            client.set_parameters(weights)
            client.compute_model_update(len(loader))
        server.update_model_with_weights([client.get_flat_parameters() for client in clients])

    yield one_round


JOBS["rounds"] = rounds
