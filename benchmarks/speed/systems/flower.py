"""Flower 1.42: the array kernels behind its robust strategies, without messages around them, and its simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.server.strategy.aggregate import aggregate, aggregate_krum, aggregate_median, aggregate_trimmed_avg
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.speed.contestant import Job
from benchmarks.speed.systems.gate import Gate
from benchmarks.speed.systems.network import SmallNetwork, read_scans, train
from benchmarks.speed.systems.updates import opened

Results = list[tuple[list[np.ndarray], int]]


def rule(compute: Callable[[Results, int], Any]) -> Job:
    @contextmanager
    def job(deltas: str, f: int, radius: float) -> Iterator[Callable[[], np.ndarray]]:
        results = [([row], 100) for row in opened(deltas)]
        yield lambda: compute(results, f)[0]

    return job


JOBS: dict[str, Job] = {
    "mean": rule(lambda results, f: aggregate(results)),
    "median": rule(lambda results, f: aggregate_median(results)),
    "trimmed_mean": rule(lambda results, f: aggregate_trimmed_avg(results, f / len(results))),
    "krum": rule(lambda results, f: aggregate_krum(results, f, 0)),
    "multi_krum": rule(lambda results, f: aggregate_krum(results, f, len(results) - f)),
}


@contextmanager
def rounds(scans: str) -> Iterator[Callable[[], None]]:
    """Its simulation on Ray, one CPU a client as its tutorials have it, and its federated averaging."""
    gate, hospitals = Gate(), len(np.load(scans)["labels"])
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train_one(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        images, labels = hospital(scans, int(context.node_config["partition-id"]))
        model = SmallNetwork()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        train(model, images, labels)
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(labels)}),
        }
        return Message(content=RecordDict(content), reply_to=message)

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=hospitals)
        arrays = ArrayRecord(SmallNetwork().state_dict())
        number = 0
        while True:
            gate.pass_through()
            number += 1
            messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
            merged, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
            assert merged is not None
            arrays = merged

    def everything() -> None:
        run_simulation(
            server_app, client_app, hospitals, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        )

    with gate.opened(everything) as one_round:
        yield one_round


@cache
def all_hospitals(scans: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Read once in every process of Ray's."""
    return read_scans(scans)


def hospital(scans: str, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    return all_hospitals(scans)[number]


JOBS["rounds"] = rounds


@contextmanager
def weights(numbers: str, hospitals: int) -> Iterator[Callable[[], None]]:
    """A broadcast and a reply from every client, through its simulation's messages; nothing is aggregated."""
    gate = Gate()
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def echo(message: Message, context: Context) -> Message:
        arrays = message.content["arrays"].to_numpy_ndarrays()
        content = RecordDict({"arrays": ArrayRecord([-array for array in arrays])})
        return Message(content=content, reply_to=message)

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        sent = np.split(np.load(numbers), 20)
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=hospitals)
        while True:
            gate.pass_through()
            messages = strategy.configure_train(1, ArrayRecord(sent), ConfigRecord(), grid)
            for reply in grid.send_and_receive(messages):
                reply.content["arrays"].to_numpy_ndarrays()

    def everything() -> None:
        run_simulation(
            server_app, client_app, hospitals, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        )

    with gate.opened(everything) as one_exchange:
        yield one_exchange


JOBS["weights"] = weights
