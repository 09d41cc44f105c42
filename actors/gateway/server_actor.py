"""The gateway's server as an actor, and how the federation's server reaches it, even if it is started again."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from fedplatform.core.logs import to_file
from fedplatform.experiments.run_folder import LOG
from fedplatform.outside.gateway_server import Answer, Collected, GatewayServer
from fedplatform.outside.identity import Roster
from fedplatform.outside.terms import Terms
from fedplatform.outside.work import Order

THREADS = 16  # requests that it serves at a time; each holds its lock for the time of a small write


def open_gateway_server(roster: Roster, terms: Terms, folder: Path, start: Path | None, *, where: Any) -> Any:
    """A gateway's server in an actor; one that dies is started again and finds on the disk what had come in."""
    remote: Any = ray.remote  # its type stubs do not know every scheduling strategy
    options = {
        "name": _name(terms.run),
        "num_cpus": 0,
        "max_restarts": -1,
        "max_concurrency": THREADS,
        "scheduling_strategy": where,
    }
    return remote(**options)(LoggedGatewayServer).remote(roster, terms, folder, start)


class LoggedGatewayServer(GatewayServer):
    """A gateway's server that writes into the run's log."""

    def __init__(self, roster: Roster, terms: Terms, folder: Path, start: Path | None) -> None:
        to_file(folder.parent / LOG)
        super().__init__(roster, terms, folder, start)


def _name(run: str) -> str:
    return f"gateway of {run}"


class RemoteGatewayServer:
    """The :class:`fedplatform.outside.outside_cohort.ServerLink` of a run's gateway.

    It travels as a name: a handle would lie in the object store, where a server that is started again may miss it.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._order: Order | None = None

    @cached_property
    def _actor(self) -> Any:
        return ray.get_actor(_name(self._run))

    def ask(self, order: Order) -> None:
        """See :meth:`GatewayServer.ask`; one that is being started again is waited for as long as the order is open."""
        self._order = order
        until = time.monotonic() + order.deadline_s
        while time.monotonic() < until:
            try:
                ray.get(self._actor.ask.remote(order))
                return
            except RayActorError:
                time.sleep(0.5)

    def finish(self, timeout_s: float) -> None:
        """See :meth:`GatewayServer.finish`."""
        with suppress(RayActorError):  # then there is nobody left to be told
            ray.get(self._actor.finish.remote(timeout_s))

    def collect(self, timeout_s: float, silent: frozenset[str] = frozenset()) -> Collected:
        """See :meth:`GatewayServer.collect`; one that died meanwhile is given the order again."""
        until = time.monotonic() + timeout_s
        while True:
            left = max(0.0, until - time.monotonic())
            try:
                collected: Collected = ray.get(self._actor.collect.remote(left, silent))
                return collected
            except RayActorError:
                if not left or self._order is None:
                    return Collected(frozenset(), {})
                self.ask(self._order)

    def answer(self, hospital_id: str) -> Answer | None:
        """See :meth:`GatewayServer.answer`; one that has died meanwhile has lost it."""
        try:
            answer: Answer | None = ray.get(self._actor.answer.remote(hospital_id))
        except RayActorError:
            return None
        return answer
