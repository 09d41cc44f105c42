"""Joining a running Ray, or starting one here: the one way in for training, serving and searching."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray._private.services import get_ray_address_from_environment

from actors.cluster import security

LOCAL = "local"

log = logging.getLogger(__name__)


def join(address: str, **options: Any) -> None:
    """Connect to the cluster at ``address`` (HOST:PORT, or ``auto`` to find it), or start one here (``local``).

    ``options`` are further ones of :func:`ray.init`. Raises :class:`~actors.cluster.security.AccessError` in one line.
    """
    security.secure()
    if address == LOCAL:
        security.require_token(make=True)
        options = {"include_dashboard": False, **options}
    else:
        security.require_token()
        try:
            address = found(address)
            security.knock(address)
        except security.AccessError as error:
            if os.environ.get("RAY_ADDRESS") == address:
                error.add_note("the address comes from RAY_ADDRESS")
            raise
    ray_worker.print_to_stdstream = _log  # type: ignore[assignment]
    before = signal.getsignal(signal.SIGTERM)
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's own would print a trace of its C++ code and abort


def _log(told: Mapping[str, Any], ignore_prefix: bool) -> None:  # noqa: ARG001
    """Log the first sentence of what Ray would print: of a node that died it prints the end of that node's log, too."""
    for text in told["lines"]:
        first = str(text).strip().partition("\n")[0].partition(". ")[0]
        if first:
            log.info("Ray: %s", first)


def found(address: str) -> str:
    """The HOST:PORT of a cluster; ``auto`` looks for the one that runs here."""
    if address.startswith(("http://", "https://")):
        raise security.AccessError(f"{address} is a dashboard, where jobs are handed in: 'fedplatform submit'")
    try:
        return str(get_ray_address_from_environment(address, None))
    except ConnectionError:
        raise security.AccessError(
            "no Ray runs here: 'fedplatform node --head' starts one, --address HOST:PORT joins another machine's"
        ) from None
