"""Ray Serve as it is started here: one HTTP proxy on the head node, and :mod:`actors.http.guard` in front of it."""

from __future__ import annotations

import logging
import os

from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from actors.http.guard import BODY_BYTES, BODY_VARIABLE

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
MIDDLEWARES = "actors.http.guard:middlewares"
REQUEST_TIMEOUT_S = 60.0
TRIES = 3  # now and then Ray's metrics crash a process that starts, and until Serve is up nobody restarts its proxy


def prepare(*, body_bytes: int = BODY_BYTES) -> None:
    """Tell a Ray that is about to be started here what Serve's proxy needs to know, and how large a request may be."""
    os.environ[BODY_VARIABLE] = str(body_bytes)
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # a busy machine is slow to start it
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's workers would give way to whatever else runs here
    os.environ[VARIABLE] = MIDDLEWARES


def quieten() -> None:
    """Let Serve tell this process of what goes wrong, and of nothing else."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


def start(application: Application, *, name: str, host: str, port: int, tls: tuple[str, str] | None) -> None:
    """Serve an application at ``/``; ``tls`` is certificate and private key."""
    certificate, key = tls or (None, None)
    options = HTTPOptions(
        host=host, port=port, request_timeout_s=REQUEST_TIMEOUT_S, ssl_certfile=certificate, ssl_keyfile=key
    )
    logs = LoggingConfig(enable_access_log=False)
    for left in reversed(range(TRIES)):
        try:
            serve.start(proxy_location="HeadOnly", http_options=options, logging_config=logs)
            break
        except RayActorError:
            if not left:
                raise
            serve.shutdown()
    serve.run(application, name=name, route_prefix="/", logging_config=logs)
