"""Brings the gateway up on Ray Serve, and takes it down."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import RayError

from actors.cohort import CohortError
from actors.gateway.ingress import Ingress
from actors.http.start import quieten, start
from fedplatform.outside.identity import Roster

NAME = "fedplatform-gateway"


@dataclass(frozen=True)
class GatewayOptions:
    """Where the gateway listens, on the head node; who may come; certificate and key for TLS."""

    host: str
    port: int
    roster: Roster
    tls: tuple[str, str] | None = None

    @property
    def words(self) -> str:
        """Where it listens, and who is registered."""
        scheme = "https" if self.tls else "http"
        return f"gateway at {scheme}://{self.host}:{self.port} for {', '.join(self.roster.keys)}"


def open_gateway(gateway: Any, options: GatewayOptions) -> None:
    """Begin to serve a gateway. Raises :class:`CohortError` where the cluster serves something else."""
    quieten()
    running = serve.status()
    if set(running.applications) - {NAME}:
        raise CohortError("this cluster serves something else already, and Ray Serve listens on one port only")
    if running.proxies:
        serve.shutdown()  # of a driver that was killed
    deployment: Any = Ingress  # the decorators' types hide what they make
    start(deployment.bind(gateway), name=NAME, host=options.host, port=options.port, tls=options.tls)


def close_gateway() -> None:
    """Take it down."""
    with suppress(RayError):  # it goes down either way
        serve.shutdown()
