"""Hospitals outside, and those inside and outside together, as the server sees them: a cohort like any other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from fedplatform.core.messages import HospitalState, Predictions, Reply, Update
from fedplatform.data.splits import Role
from fedplatform.federated.cohort import Cohort
from fedplatform.federated.deadline import Deadline
from fedplatform.federated.hospital_state import Launch
from fedplatform.outside.envelope import Kind
from fedplatform.outside.gateway_server import Answer, Collected
from fedplatform.outside.work import Order


class ServerLink(Protocol):
    """What the server needs of a gateway, wherever that stands."""

    def ask(self, order: Order) -> None: ...

    def collect(self, timeout_s: float, silent: frozenset[str]) -> Collected: ...

    def answer(self, hospital_id: str) -> Answer | None: ...


class OutsideCohort:
    """The hospitals of a roster behind a gateway, asked first and heard later, while those inside are at work.

    One that does not answer in time is silent until it is heard again: it is asked all the same, and waited for only as
    long again as the others took. Where nobody else is there to go on with, it is waited for until the deadline.
    """

    def __init__(
        self, gateway: ServerLink, hospital_ids: tuple[str, ...], *, deadline_s: float, launch: Launch | None
    ) -> None:
        self.hospital_ids = hospital_ids
        self._gateway = gateway
        self._deadline = Deadline(deadline_s)
        self._launch = launch
        self._time_s = self._asked_at = 0.0
        self._asked = hospital_ids
        self._silent: set[str] = set()

    def ask(
        self,
        kind: Kind,
        weights: np.ndarray,
        round_number: int,
        roles: Sequence[Role] = (),
        asked: Sequence[str] | None = None,
    ) -> None:
        """Put the weights out and say what is wanted of those that are ``asked``, None for all."""
        self._asked_at, self._time_s = time.monotonic(), self._deadline.seconds
        self._asked = self.hospital_ids if asked is None else tuple(name for name in self.hospital_ids if name in asked)
        order = Order(kind, round_number, weights, self._time_s, tuple(roles), self._launch, self._asked)
        self._gateway.ask(order)

    def updates(self, *, others: bool = False) -> Iterator[Reply]:
        """An update, or the reason for its absence, from every hospital that was asked.

        ``others`` says whether anybody inside has sent one, so that the round can go on without who is silent.
        """
        collected = self._collected(others=others)
        for name in self._asked:
            yield self._reply(name, collected)

    def _reply(self, name: str, collected: Collected) -> Reply:
        answer = self._gateway.answer(name) if name in collected.answered else None
        if isinstance(answer, Update):
            return Reply(name, HospitalState.REPORTED, answer)
        if name in collected.complaints:
            return Reply(name, HospitalState.MALFORMED, reason=collected.complaints[name])
        return Reply(name, HospitalState.LATE, reason=self._nothing(name))

    def predictions(self, roles: Sequence[Role], *, others: bool = False) -> list[Predictions]:
        """The predictions of whoever has answered, and of everybody else the reason for their absence."""
        collected = self._collected(others=others)
        predictions: list[Predictions] = []
        for name in self.hospital_ids:
            answer = self._gateway.answer(name) if name in collected.answered else None
            if isinstance(answer, tuple):
                predictions += answer
            else:
                predictions += Predictions.failed(name, roles, collected.complaints.get(name, self._nothing(name)))
        return predictions

    def _nothing(self, name: str) -> str:
        waited = f"within {time.monotonic() - self._asked_at:.0f} s"
        return f"nothing came from outside {waited}" + ("; it is silent" if name in self._silent else "")

    def _collected(self, *, others: bool) -> Collected:
        """What came until the deadline; of those who are silent, what came until the others had been waited for."""
        asked = set(self._asked)
        silent = asked & self._silent if others or asked - self._silent else set()
        left_s = max(0.0, self._asked_at + self._time_s - time.monotonic())
        collected = self._gateway.collect(left_s, frozenset(silent))
        if collected.longest_s:
            self._deadline.heard(collected.longest_s)
        spoke = collected.answered | set(collected.complaints)
        self._silent = (self._silent | asked) - spoke
        return collected


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
        others = False
        for reply in self._inside.train(weights, round_number, inside):
            others |= reply.update is not None
            yield reply
        yield from self._outside.updates(others=others)

    def evaluate(self, weights: np.ndarray, roles: Sequence[Role]) -> list[Predictions]:
        """Predictions of every honest hospital inside and of every one outside that answers."""
        self._outside.ask(Kind.PREDICTIONS, weights, self._round, roles)
        predictions = self._inside.evaluate(weights, roles)
        others = any(not one.failure for one in predictions)
        predictions = [*predictions, *self._outside.predictions(roles, others=others)]
        return sorted(predictions, key=lambda one: self._hospital_ids.index(one.hospital_id))
