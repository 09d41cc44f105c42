"""Hospitals behind Ray actors: broadcast once by reference, wait until the deadline, tell late from crashed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from actors.hospital import HospitalHost
from actors.placement import at_home, here, spread
from fedplatform.core.errors import FedplatformError
from fedplatform.core.logs import Line
from fedplatform.core.messages import TRAINING_RAISED, HospitalState, Predictions, Reply
from fedplatform.core.site_statistics import LEAST, SiteStatistics
from fedplatform.data.splits import Role
from fedplatform.experiments.places import Place
from fedplatform.federated.answers import of_sender
from fedplatform.federated.cohort import CohortPlan
from fedplatform.federated.deadline import Deadline
from fedplatform.federated.transport import Packed, TransportError

START_TIMEOUT_S = 300.0
LAST_LOGS_S = 1.0
AWAY = "its node has not come yet"


class CohortError(FedplatformError, RuntimeError):
    """The hospitals could not be brought up."""


class RayCohort:
    """A :class:`fedplatform.federated.cohort.Cohort` on Ray: the same replies in the same order, from other processes.

    Hospitals with ``places`` have an actor each, on their own node; without, ``num_hosts`` actors of one CPU, and so
    much of a GPU as ``gpus`` says, are dealt the hospitals in turn. An actor whose process dies is started again by
    Ray, opens its shards and is there in the next round; a request that it had accepted is not repeated. A hospital
    whose node is away at the start is absent until that comes: Ray starts its actor then.
    """

    def __init__(
        self,
        plan: CohortPlan,
        *,
        num_hosts: int,
        deadline_s: float,
        places: Sequence[Place] = (),
        gpus: float = 0.0,
        host: type[HospitalHost] = HospitalHost,
    ) -> None:
        self._plan = plan
        self._deadline = Deadline(deadline_s)
        self._waits_s = self._deadline.seconds  # in the round under way; answers in it change what the next one has
        self._logs: dict[int, ray.ObjectRef[Sequence[Line]]] = {}  # what hospitals log, as it was asked for
        self._round = 0
        placements = at_home(places) if places else spread(plan, num_hosts, gpus)
        remote: Any = ray.remote  # its type stubs do not know concurrency groups
        actor = remote(max_restarts=-1, max_task_retries=0, concurrency_groups={"work": 1, "control": 1})(host)
        # By value and not by reference: a restarted actor must find its plan whatever became of the object store.
        self._hosts: list[Any] = [
            actor.options(**placement.options).remote(placement.plan(plan), placement.hospital_ids)
            for placement in placements
        ]
        placed = list(zip(self._hosts, placements, strict=True))
        self._host_of = {name: host for host, placement in placed for name in placement.hospital_ids}
        away = {place.name for place in places} - here(places)
        self._awaited: dict[str, ray.ObjectRef[int]] = {name: self._host_of[name].ready.remote() for name in away}
        try:
            ready = [host.ready.remote() for host, placement in placed if away.isdisjoint(placement.hospital_ids)]
            ray.get(ready, timeout=START_TIMEOUT_S)
        except GetTimeoutError:
            raise CohortError(
                f"{len(placements)} hospital actors did not start within {START_TIMEOUT_S:.0f} s; "
                f"the cluster has {ray.cluster_resources().get('CPU', 0):.0f} CPUs"
            ) from None
        except RayActorError as error:
            raise CohortError(f"a hospital actor could not start: {cause(error)}") from error

    @property
    def hospital_ids(self) -> tuple[str, ...]:
        """All hospitals in order."""
        return tuple(self._plan.shard_files)

    @property
    def host_of(self) -> dict[str, Any]:
        """The actor in which each hospital lives."""
        return self._host_of

    def begin(self, round_number: int) -> None:
        """Note which round is under way: what is evaluated next came out of it."""
        self._round = round_number

    def train(self, weights: np.ndarray, round_number: int, asked: Sequence[str] | None = None) -> Iterator[Reply]:
        """One round of training; a hospital that misses the deadline or dies is a reply too.

        Once a reply is handed out, nothing here refers to its update in the object store, which drops it; but where
        attackers collude, those of the others stay until these have seen them.
        """
        self.begin(round_number)
        asked_at, self._waits_s = time.monotonic(), self._deadline.seconds
        deadline = asked_at + self._waits_s
        broadcast = ray.put(weights)
        absent = self._absent()
        names = []
        for name in self.hospital_ids if asked is None else asked:
            if name in absent:
                yield Reply(name, HospitalState.LATE, reason=AWAY)
            else:
                names.append(name)
        colluding = self._plan.adversary.colluding_among(names)
        training = {
            self._host_of[name].train.remote(name, broadcast, round_number): name
            for name in names
            if name not in colluding
        }
        sent: dict[str, ray.ObjectRef[Packed]] = {}
        for name, ref in self._arriving(training, deadline):
            if ref is None:
                yield self._stop(name, round_number)
                continue
            self._deadline.heard(time.monotonic() - asked_at)
            reply = self._reply(name, ref, size=weights.size)
            if colluding and reply.update is not None:
                sent[name] = ref
            del ref
            yield reply
            del reply
        if colluding:
            seen = [sent[name] for name in names if name in sent]
            replies = self._collude(colluding, seen, broadcast, round_number, deadline, size=weights.size)
            yield from replies.values()

    def evaluate(self, weights: np.ndarray, roles: Sequence[Role]) -> list[Predictions]:
        """Predictions of every honest hospital; of one whose actor is not alive, the reason for their absence."""
        deadline = time.monotonic() + self._deadline.seconds
        broadcast = ray.put(weights)
        absent = self._absent()
        asked = {
            name: self._host_of[name].evaluate.remote(name, broadcast, tuple(roles), self._round)
            for name in self._plan.honest
            if name not in absent
        }
        predictions: list[Predictions] = []
        for name in self._plan.honest:
            if name in absent:
                predictions += Predictions.failed(name, roles, AWAY)
                continue
            try:
                said = ray.get(asked[name], timeout=max(0.0, deadline - time.monotonic()))
                predictions += of_sender(name, said, roles)
            except RayError as error:
                predictions += Predictions.failed(name, roles, cause(error))
        self._pass_on_logs()
        return predictions

    def statistics(self, least: int = LEAST) -> list[SiteStatistics]:
        """What each hospital tells of its scans, in order; of one that does not answer, why there is nothing."""
        deadline = time.monotonic() + self._deadline.seconds
        absent = self._absent()
        asked = {
            name: self._host_of[name].statistics.remote(name, least) for name in self.hospital_ids if name not in absent
        }
        told: list[SiteStatistics] = []
        for name in self.hospital_ids:
            if name in absent:
                told.append(SiteStatistics(name, least, failure=AWAY))
                continue
            ref = asked[name]
            try:
                told.append(ray.get(ref, timeout=max(0.0, deadline - time.monotonic())))
            except RayError as error:
                told.append(SiteStatistics(name, least, failure=cause(error)))
        return told

    def _pass_on_logs(self, timeout_s: float = 0.0) -> None:
        """Log here what hospitals have logged and sent so far, and ask those that have answered for what comes next."""
        for number, host in enumerate(self._hosts):
            if number not in self._logs:
                self._logs[number] = host.logged.remote()
        done, _ = ray.wait(list(self._logs.values()), num_returns=len(self._logs), timeout=timeout_s)
        for number, ref in list(self._logs.items()):
            if ref in done:
                del self._logs[number]
                with suppress(RayError):
                    for line in ray.get(ref):
                        line.log_here()

    def _absent(self) -> frozenset[str]:
        """Hospitals whose node has not come yet; whoever has come meanwhile is asked from now on."""
        if self._awaited:
            done, _ = ray.wait(list(self._awaited.values()), num_returns=len(self._awaited), timeout=0)
            self._awaited = {name: ref for name, ref in self._awaited.items() if ref not in done}
        return frozenset(self._awaited)

    def process_of(self, hospital_id: str) -> int:
        """The process id of the hospital's actor, once it is free to answer."""
        process_id: int = ray.get(self._host_of[hospital_id].ready.remote(), timeout=self._deadline.seconds)
        return process_id

    def close(self) -> None:
        """End the actors."""
        with suppress(RayError):
            self._pass_on_logs(LAST_LOGS_S)
        for host in self._hosts:
            ray.kill(host)

    def _arriving(
        self, asked: dict[ray.ObjectRef[Packed], str], deadline: float
    ) -> Iterator[tuple[str, ray.ObjectRef[Packed] | None]]:
        """Hospitals with their answers as these arrive; with None who has not answered by the deadline.

        Takes from ``asked`` what it hands out.
        """
        while asked:
            done, _ = ray.wait(list(asked), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                break
            name = asked.pop(done[0])
            yield name, done.pop()
        yield from ((name, None) for name in asked.values())

    def _reply(self, hospital_id: str, ref: ray.ObjectRef[Packed], *, size: int) -> Reply:
        """Fetch a hospital's answer and say what became of the hospital."""
        try:
            return self._opened(hospital_id, ray.get(ref), size=size)
        except RayError as error:
            return crash(hospital_id, error)

    def _opened(self, hospital_id: str, sent: object, *, size: int) -> Reply:
        if not isinstance(sent, Packed):
            return Reply(hospital_id, HospitalState.MALFORMED, reason=f"it sent a {type(sent).__name__}, not an update")
        try:
            return Reply(hospital_id, HospitalState.REPORTED, sent.open(self._plan.transport, size=size))
        except TransportError as error:
            return Reply(hospital_id, HospitalState.MALFORMED, reason=str(error))

    def _stop(self, hospital_id: str, round_number: int) -> Reply:
        """Call off what the hospital was asked for in this round, for it is late."""
        self._host_of[hospital_id].stop.remote(round_number)
        return Reply(hospital_id, HospitalState.LATE, reason=f"nothing came within {self._waits_s:g} s")

    def _collude(
        self,
        colluding: tuple[str, ...],
        sent: list[ray.ObjectRef[Packed]],
        broadcast: ray.ObjectRef[np.ndarray],
        round_number: int,
        deadline: float,
        *,
        size: int,
    ) -> dict[str, Reply]:
        """Let one attacker after another try to forge the updates of all, until one that is alive has."""
        failed: dict[str, Reply] = {}
        for ringleader in colluding:
            forged = self._host_of[ringleader].forge.remote(ringleader, sent, broadcast, round_number, colluding)
            try:
                forgeries: list[Packed] = ray.get(forged, timeout=max(0.0, deadline - time.monotonic()))
            except GetTimeoutError:
                failed[ringleader] = self._stop(ringleader, round_number)
            except RayError as error:
                failed[ringleader] = crash(ringleader, error)
            else:
                names = [packed.rest.hospital_id for packed in forgeries]
                replies = map(partial(self._opened, size=size), names, forgeries)
                return {**dict(zip(names, replies, strict=True)), **failed}
        return failed


def crash(hospital_id: str, error: RayError) -> Reply:
    """The reply of a hospital whose process died, whose code raised, or whose update was lost with its machine."""
    what = "its update was lost:"
    if isinstance(error, RayActorError):
        what = "its process died:"
    elif isinstance(error, RayTaskError):
        what = TRAINING_RAISED
    return Reply(hospital_id, HospitalState.CRASHED, reason=f"{what} {cause(error)}")


def cause(error: Exception) -> str:
    """The last line of a Ray error, which names the cause; the lines above are the trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
