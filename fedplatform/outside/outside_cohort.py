"""Hospitals outside, and those inside and outside together, as the server sees them: a cohort like any other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from fedplatform.core.messages import HospitalState, Predictions, Reply, Update
from fedplatform.data.splits import Role
from fedplatform.federated.cohort import Cohort
from fedplatform.federated.hospital_state import Launch
from fedplatform.outside.envelope import Kind
from fedplatform.outside.gateway_server import Answer, Collected
from fedplatform.outside.work import Order


class ServerLink(Protocol):
    """What the server needs of a gateway, wherever that stands."""

    def ask(self, order: Order) -> None: ...

    def collect(self, timeout_s: float) -> Collected: ...

    def answer(self, hospital_id: str) -> Answer | None: ...


class OutsideCohort:
    """The hospitals of a roster behind a gateway, asked first and heard later, while those inside are at work."""

    def __init__(
        self, gateway: ServerLink, hospital_ids: tuple[str, ...], *, deadline_s: float, launch: Launch | None
    ) -> None:
        self.hospital_ids = hospital_ids
        self._gateway = gateway
        self._deadline_s = deadline_s
        self._launch = launch
        self._due_at = 0.0
        self._asked = hospital_ids

    def ask(
        self,
        kind: Kind,
        weights: np.ndarray,
        round_number: int,
        roles: Sequence[Role] = (),
        asked: Sequence[str] | None = None,
    ) -> None:
        """Put the weights out and say what is wanted of those that are ``asked``, None for all."""
        self._due_at = time.monotonic() + self._deadline_s
        self._asked = self.hospital_ids if asked is None else tuple(name for name in self.hospital_ids if name in asked)
        order = Order(kind, round_number, weights, self._deadline_s, tuple(roles), self._launch, self._asked)
        self._gateway.ask(order)

    def updates(self) -> Iterator[Reply]:
        """An update, or the reason for its absence, from every hospital that was asked."""
        collected = self._collected()
        for name in self._asked:
            yield self._reply(name, collected)

    def _reply(self, name: str, collected: Collected) -> Reply:
        answer = self._gateway.answer(name) if name in collected.answered else None
        if isinstance(answer, Update):
            return Reply(name, HospitalState.REPORTED, answer)
        if name in collected.complaints:
            return Reply(name, HospitalState.MALFORMED, reason=collected.complaints[name])
        return Reply(name, HospitalState.LATE, reason=f"nothing came from outside within {self._deadline_s:g} s")

    def predictions(self, roles: Sequence[Role]) -> list[Predictions]:
        """The predictions of whoever has answered, and of everybody else the reason for their absence."""
        collected = self._collected()
        predictions: list[Predictions] = []
        for name in self.hospital_ids:
            answer = self._gateway.answer(name) if name in collected.answered else None
            if isinstance(answer, tuple):
                predictions += answer
            else:
                late = f"nothing came from outside within {self._deadline_s:g} s"
                predictions += Predictions.failed(name, roles, collected.complaints.get(name, late))
        return predictions

    def _collected(self) -> Collected:
        return self._gateway.collect(max(0.0, self._due_at - time.monotonic()))


class JoinedCohort:
    """Hospitals inside the cluster and outside of it, in one order and under one deadline.

    Attackers that collude are simulated and live inside; they see no update from outside.
    """

    def __init__(self, inside: Cohort, outside: OutsideCohort, *, hospital_ids: tuple[str, ...]) -> None:
        self._inside = inside
        self._outside = outside
        self._hospital_ids = hospital_ids
        self._round = 0

    @property
    def hospital_ids(self) -> tuple[str, ...]:
        """All hospitals in order."""
        return self._hospital_ids

    def train(self, weights: np.ndarray, round_number: int, asked: Sequence[str] | None = None) -> Iterator[Reply]:
        """One round of training, inside and outside at the same time."""
        self._round = round_number
        self._outside.ask(Kind.UPDATE, weights, round_number, asked=asked)
        inside = asked and [name for name in self._inside.hospital_ids if name in asked]
        yield from self._inside.train(weights, round_number, inside)
        yield from self._outside.updates()

    def evaluate(self, weights: np.ndarray, roles: Sequence[Role]) -> list[Predictions]:
        """Predictions of every honest hospital inside and of every one outside that answers."""
        self._outside.ask(Kind.PREDICTIONS, weights, self._round, roles)
        predictions = [*self._inside.evaluate(weights, roles), *self._outside.predictions(roles)]
        return sorted(predictions, key=lambda one: self._hospital_ids.index(one.hospital_id))
