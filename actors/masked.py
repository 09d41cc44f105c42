"""Secure aggregation on Ray: hospitals whose updates leave their own process only under masks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError

from actors.cohort import RayCohort, cause, crash
from actors.hospital import HospitalHost
from fedplatform.core.mapped import scratch
from fedplatform.core.messages import HospitalState, Predictions, Reply, Update
from fedplatform.data.splits import Role
from fedplatform.federated.byzantine import ByzantineHospital
from fedplatform.federated.cohort import CohortPlan
from fedplatform.federated.deadline import Deadline
from fedplatform.federated.secure import MaskedHospital, NothingLearnedError, ProtocolError, RangeError, Request
from fedplatform.federated.transport import Packed


class MaskedHospitalHost(HospitalHost):
    """A host whose hospitals give no single update to anybody; what it answers is of use only in a sum.

    Colluding attackers see honest updates, as the literature assumes: only in a simulation of them does a host show
    these, and then to the attackers' hosts and not to the server.
    """

    def __init__(self, plan: CohortPlan, hospital_ids: Sequence[str]) -> None:
        super().__init__(plan, hospital_ids)
        assert plan.privacy is not None
        self._masked = {name: MaskedHospital(who, plan.privacy) for name, who in self._participants.items()}
        self._simulates_collusion = bool(plan.adversary.colluding)

    @ray.method(concurrency_group="work")
    def train(self, hospital_id: str, weights: np.ndarray, round_number: int) -> Packed:  # noqa: ARG002
        """Refuse: its answer would be a single update."""
        raise ProtocolError(f"{hospital_id} gives no single update")

    @ray.method(concurrency_group="work")
    def forge(
        self,
        hospital_id: str,
        honest: Sequence[ray.ObjectRef[Packed]],  # noqa: ARG002
        weights: np.ndarray,  # noqa: ARG002
        round_number: int,  # noqa: ARG002
        colluding: Sequence[str],  # noqa: ARG002
    ) -> list[Packed]:
        """Refuse: what it would look at are single updates."""
        raise ProtocolError(f"{hospital_id} gives no single update")

    @ray.method(concurrency_group="work")
    def train_masked(self, hospital_id: str, weights: np.ndarray, round_number: int) -> None:
        """Train one hospital, whose update stays here."""
        torch.set_num_threads(1)
        self._masked[hospital_id].train(weights, round_number, should_stop=lambda: self._stopped_round >= round_number)

    @ray.method(concurrency_group="work")
    def answer(self, hospital_id: str, request: Request, *content: object) -> object:
        """One hospital's answer to a request of the protocol."""
        return self._masked[hospital_id].answer(request, *content)

    @ray.method(concurrency_group="work")
    def show_to_attackers(self, hospital_id: str) -> np.ndarray:
        """An honest update, for the colluding attackers of a simulation."""
        if not self._simulates_collusion:
            raise ProtocolError(f"{hospital_id} gives no single update")
        return self._masked[hospital_id].own_update.delta

    @ray.method(concurrency_group="work")
    def collude(
        self,
        hospital_id: str,
        honest: Mapping[str, Any],
        weights: np.ndarray,
        round_number: int,
        colluding: Sequence[str],
    ) -> list[Update]:
        """What the colluding attackers send, in order, forged by the one named after a look at the honest updates."""
        torch.set_num_threads(1)
        attacker = self._masked[hospital_id].participant
        assert isinstance(attacker, ByzantineHospital)
        elsewhere = {
            name: host.show_to_attackers.remote(name) for name, host in honest.items() if name not in self._masked
        }
        seen = scratch(len(honest), weights.size)
        for row, name in enumerate(honest):
            mine = name in self._masked
            seen[row] = self._masked[name].own_update.delta if mine else ray.get(elsewhere.pop(name))
        return attacker.forge(seen, weights, round_number, colluding)

    @ray.method(concurrency_group="work")
    def adopt(self, hospital_id: str, forged: Update) -> None:
        """Let an attacker send what the attackers have agreed on."""
        self._masked[hospital_id].adopt(forged)


class RayMaskedHospitals:
    """:class:`~fedplatform.federated.secure.MaskedHospitals` on Ray: one that is late or dies drops out of the sum."""

    def __init__(self, cohort: RayCohort, plan: CohortPlan, *, deadline_s: float) -> None:
        self._cohort = cohort
        self._plan = plan
        self._deadline = Deadline(deadline_s)
        self._waits_s = self._deadline.seconds

    @property
    def hospital_ids(self) -> tuple[str, ...]:
        """All hospitals in order."""
        return self._cohort.hospital_ids

    def evaluate(self, weights: np.ndarray, roles: Sequence[Role]) -> list[Predictions]:
        """Predictions of every honest hospital whose actor is alive."""
        return self._cohort.evaluate(weights, roles)

    def ask(self, request: Request, content: Mapping[str, tuple[object, ...]]) -> Iterator[tuple[str, Any]]:
        """Put a request to hospitals at once; each has the deadline to answer."""
        return self._answers(
            {self._cohort.host_of[name].answer.remote(name, request, *parts): name for name, parts in content.items()}
        )

    def train(self, weights: np.ndarray, round_number: int, hospital_ids: Sequence[str]) -> dict[str, Reply]:
        """One round of training; a hospital that misses the deadline is called off."""
        self._cohort.begin(round_number)
        broadcast = ray.put(weights)
        colluding = self._plan.adversary.colluding_among(hospital_ids)
        honest = [name for name in hospital_ids if name not in colluding]
        hosts = self._cohort.host_of
        answers = dict(
            self._answers({hosts[name].train_masked.remote(name, broadcast, round_number): name for name in honest})
        )
        for name, answer in answers.items():
            if isinstance(answer, Reply) and answer.state is HospitalState.LATE:
                hosts[name].stop.remote(round_number)
        if colluding:
            seen = {name: hosts[name] for name in honest if answers[name] is None}
            answers |= self._collude(colluding, seen, broadcast, round_number)
        return {
            name: answer if isinstance(answer, Reply) else Reply(name, HospitalState.REPORTED)
            for name, answer in answers.items()
        }

    def _collude(
        self,
        colluding: Sequence[str],
        honest: Mapping[str, Any],
        broadcast: ray.ObjectRef[np.ndarray],
        round_number: int,
    ) -> dict[str, Any]:
        """Let one attacker after another try to forge for all, until one that is alive has; then each takes its own."""
        hosts = self._cohort.host_of
        failed: dict[str, Any] = {}
        for name in colluding:
            forging = hosts[name].collude.remote(name, honest, broadcast, round_number, colluding)
            forged = dict(self._answers({forging: name}))[name]
            if not isinstance(forged, Reply):
                each = {update.hospital_id: update for update in forged if update.hospital_id in colluding}
                taken = {hosts[attacker].adopt.remote(attacker, update): attacker for attacker, update in each.items()}
                return {**dict(self._answers(taken)), **failed}
            failed[name] = forged
        return failed

    def _answers(self, asked: dict[ray.ObjectRef[Any], str]) -> Iterator[tuple[str, Any]]:
        """The answers by hospital, or the reply that says why there is none; empties ``asked`` on the way."""
        asked_at, self._waits_s = time.monotonic(), self._deadline.seconds
        deadline = asked_at + self._waits_s
        while asked:
            ref = next(iter(asked))
            name = asked.pop(ref)
            answer = self._answer(name, ref, deadline)
            if not isinstance(answer, Reply):
                self._deadline.heard(time.monotonic() - asked_at)
            yield name, answer

    def _answer(self, name: str, ref: ray.ObjectRef[Any], deadline: float) -> object:
        if not ray.wait([ref], timeout=max(0.0, deadline - time.monotonic()))[0]:
            return Reply(name, HospitalState.LATE, reason=f"nothing came within {self._waits_s:g} s")
        try:
            return ray.get(ref)
        except RayError as error:
            if isinstance(error, RangeError | NothingLearnedError):
                return Reply(name, HospitalState.MALFORMED, reason=cause(error))
            return crash(name, error)
