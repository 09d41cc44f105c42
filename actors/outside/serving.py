"""Brings the gateway up on Ray Serve, and takes it down."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from actors.cohort import CohortError
from actors.endpoint.config_file import REQUEST_TIMEOUT_S
from actors.endpoint.gateway import IMPORT_PATH, VARIABLE
from actors.outside.ingress import Ingress
from fedplatform.outside.identity import Roster

NAME = "fedplatform-gateway"


@dataclass(frozen=True)
class GatewayOptions:
    """Where the gateway listens, on the head node; who may come; certificate and key for TLS."""

    host: str
    port: int
    roster: Roster
    tls: tuple[str, str] | None = None


def prepare() -> None:
    """Tell a Ray that is about to be started here what Serve's proxy needs to know."""
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # a busy machine is slow to start it
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's workers would give way to whatever else runs here
    os.environ[VARIABLE] = IMPORT_PATH


def open_gateway(desk: Any, options: GatewayOptions) -> None:
    """Begin to serve a desk. Raises :class:`CohortError` where the cluster serves something else."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    running = serve.status()
    if set(running.applications) - {NAME}:
        raise CohortError("this cluster serves something else already, and Ray Serve listens on one port only")
    if running.proxies:
        serve.shutdown()  # of a driver that was killed
    certificate, key = options.tls or (None, None)
    http = HTTPOptions(
        host=options.host,
        port=options.port,
        request_timeout_s=REQUEST_TIMEOUT_S,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    logs = LoggingConfig(enable_access_log=False)
    deployment: Any = Ingress  # the decorators' types hide what they make
    serve.start(proxy_location="HeadOnly", http_options=http, logging_config=logs)
    serve.run(deployment.bind(desk), name=NAME, route_prefix="/", logging_config=logs)


def close_gateway() -> None:
    """Take it down."""
    with suppress(RayError):  # it goes down either way
        serve.shutdown()
