"""The endpoint on this machine: starts Ray and Serve, and takes them down again."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray import serve
from ray.exceptions import RayError

from actors.cluster.joining import LOCAL, join
from actors.endpoint.application import app, deployments
from actors.endpoint.arguments import EndpointArguments
from actors.endpoint.config_file import NAME
from actors.http.start import prepare, quieten, start
from fedplatform.core.settings import ExperimentError
from fedplatform.serving.refused import MEBIBYTE

LEAST_CPUS = 2  # diagnostician and purifying ask for one each, whatever the machine has


@contextmanager
def served(arguments: EndpointArguments, *, host: str, port: int, tls: tuple[str, str] | None = None) -> Iterator[str]:
    """Serve while the block runs; gives the address of Ray's metrics.

    Raises OSError where the port is taken, :class:`ExperimentError` where there are too few GPUs.
    """
    _check_free(host, port)
    prepare(body_bytes=arguments.limits.bytes + MEBIBYTE)  # around a file stands what multipart/form-data adds
    # Ray's own ports are open to the network and ask for the token.
    join(LOCAL, num_cpus=max(LEAST_CPUS, os.cpu_count() or 1))
    quieten()
    try:
        _check_gpus(arguments)
        try:
            start(app(arguments), name=NAME, host=host, port=port, tls=tls)
            (node,) = ray.nodes()
            yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        finally:
            with suppress(RayError):  # it goes down either way
                serve.delete(NAME)  # waits for the requests under way
    finally:
        ray.shutdown()


def wait_for_the_end() -> None:
    """Until Ctrl-C, or the signal by which a service is stopped."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()


def _check_gpus(arguments: EndpointArguments) -> None:
    wanted = sum(part.ray_actor_options.get("num_gpus") or 0 for part in deployments(arguments))
    there = ray.cluster_resources().get("GPU", 0)
    if wanted > there:
        raise ExperimentError(f"two parts take {arguments.gpus:g} GPUs each, and this machine has {there:g}: --gpus X")


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def free_port(host: str) -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
