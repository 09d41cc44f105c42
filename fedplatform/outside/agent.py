"""The hospital's side: it asks what there is to do, fetches weights, trains on its own scans, and sends what it signed.

All connections go out. The line may break and the server be started again at any moment: the agent asks anew, with
longer and longer pauses, and an upload goes on where it stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedplatform.core.files import write_durably
from fedplatform.core.messages import Predictions
from fedplatform.core.settings import ExperimentError
from fedplatform.experiments.weights import START
from fedplatform.federated.hospital import Participant
from fedplatform.federated.hospital_state import Launch
from fedplatform.federated.transport import EXACT, Transport
from fedplatform.outside.body import decode_weights, encode_predictions, encode_update, seconds_in
from fedplatform.outside.envelope import Envelope, Greeting, Header, Kind
from fedplatform.outside.outbox import Outbox
from fedplatform.outside.refusal import Reason, Refusal
from fedplatform.outside.terms import Start, Terms
from fedplatform.outside.work import CHUNK, Hello, State, Task, Work, launch_number

log = logging.getLogger(__name__)

POLL_S = 1.0
LONGEST_PAUSE_S = 60.0
PATIENCE_S = 24 * 3600.0  # without a word from the server
GONE_S = 15.0  # a process that has ended is forgotten by the server meanwhile
TRIES = 5  # to have one message taken

T = TypeVar("T")


class Unreachable(OSError):  # noqa: N818 - a state that passes
    """The server could not be reached, or not be understood; it may be in a moment."""


class GatewayTransport(Protocol):
    """A :class:`~fedplatform.outside.gateway_server.GatewayServer` from afar: its methods also raise Unreachable."""

    def hello(self) -> bytes: ...

    def enter(self, greeting: bytes) -> str: ...

    def terms(self, token: str) -> bytes: ...

    def work(self, token: str) -> bytes: ...

    def weights(self, token: str, base: str, offset: int) -> bytes: ...

    def announce(self, token: str, envelope: bytes) -> int: ...

    def append(self, token: str, digest: str, offset: int, piece: bytes) -> int: ...


class Watcher(Protocol):
    """Whoever shows the hospital's person what is going on; of bytes, how many are through and how many there are."""

    def unreachable(self, error: Unreachable, pause_s: float) -> None: ...

    def fetching_start(self, start: Start, done: int) -> None: ...

    def fetching(self, task: Task, done: int) -> None: ...

    def working(self, task: Task) -> None: ...

    def sending(self, header: Header, done: int) -> None: ...

    def refused(self, refusal: Refusal) -> None: ...


class Agent:
    """One hospital's part in one run; ``folder`` is its own and private."""

    def __init__(
        self,
        gateway: GatewayTransport,
        *,
        hospital_id: str,
        key: Ed25519PrivateKey,
        folder: Path,
        watcher: Watcher,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._gateway = gateway
        self._hospital_id = hospital_id
        self._key = key
        self._folder = folder
        self._watcher = watcher
        self._sleep = sleep
        self._token: str | None = None
        self._run: str | None = None
        self._launch: Launch | None = None
        self._participant: Participant | None = None
        self._tries: dict[Task, int] = {}
        self._transport = EXACT
        self.weights: np.ndarray | None = None
        """The newest weights (d,) of the federation that came here."""

    def terms(self) -> Terms:
        """What the federation asks of this hospital. Raises :class:`Refusal` where it does not know the hospital."""
        return Terms.model_validate_json(self._in_session(self._gateway.terms))

    def starting_weights(self, start: Start) -> Path:
        """The file of the weights that every hospital starts from, fetched once. Raises :class:`Refusal`."""
        assert self._run is not None
        file = self._folder / self._run / START
        if not file.exists() or sha256(file.read_bytes()).hexdigest() != start.sha256:
            seen = partial(self._watcher.fetching_start, start)
            write_durably(file, self._fetched(start.sha256, start.size, seen))
        return file

    def take_part(self, admit: Callable[[Launch | None], Participant], transport: Transport = EXACT) -> None:
        """Do what the server asks until it has nothing more to ask.

        ``admit`` brings the hospital up, anew whenever the server goes back to a round before; ``transport`` is that of
        the terms.
        """
        self._transport = transport
        while (work := Work.read(self._in_session(self._gateway.work))).state is not State.FINISHED:
            if work.task is None or self._tries.get(_without_clock(work.task), 0) >= TRIES:
                self._sleep(POLL_S)
                continue
            try:
                self._do(work.task, admit)
            except Refusal as refusal:
                self._watcher.refused(refusal)
                lost = TRIES if refusal.reason in (Reason.MALFORMED, Reason.OVERSIZE) else 1
                task = _without_clock(work.task)
                self._tries = {task: self._tries.get(task, 0) + lost}
                self._sleep(POLL_S)

    def _do(self, task: Task, admit: Callable[[Launch | None], Participant]) -> None:
        assert self._run is not None
        outbox = Outbox(self._folder / "outbox" / self._run)
        message = outbox.find(task, run=self._run)
        launch = Launch(*task.launch) if task.launch else None
        if message is None or message[0].header.launch != launch_number(launch):
            weights = self._fetch(task)
            if self._participant is None or launch != self._launch:
                self._participant, self._launch = admit(launch), launch
            self._watcher.working(task)
            body = self._answer(self._participant, task, weights, earlier=message)
            envelope = Envelope.seal(
                body,
                key=self._key,
                run=self._run,
                launch=launch_number(launch),
                hospital_id=self._hospital_id,
                round_number=task.round,
                kind=task.kind,
                base=task.base,
            )
            message = envelope, body
            outbox.keep(*message)
        self._send(*message)

    def _answer(
        self, participant: Participant, task: Task, weights: np.ndarray, *, earlier: tuple[Envelope, bytes] | None
    ) -> bytes:
        if task.kind is Kind.UPDATE:
            update = participant.train(weights, task.round)
            if earlier is not None:
                # The server went back, and the hospital with it. The same training took another time; said with the
                # first one's, it is the same message, of which a part may be there already.
                update = replace(update, seconds=seconds_in(earlier[1]))
            return encode_update(update, self._transport)
        predictions = participant.evaluate(weights, task.roles, round_number=task.round)
        for failure in {one.failure for one in predictions if one.failure}:
            log.warning("round %d cannot be judged on the scans here: %s", task.round, failure)
        return encode_predictions([_without_details(one) for one in predictions])

    def _fetch(self, task: Task) -> np.ndarray:
        self.weights = decode_weights(self._fetched(task.base, task.size, partial(self._watcher.fetching, task)))
        return self.weights

    def _fetched(self, digest: str, size: int, seen: Callable[[int], None]) -> bytes:
        """Weights of this SHA-256, piece by piece; ``seen`` hears how many bytes are here."""
        body = bytearray()
        while len(body) < size:
            piece = self._in_session(partial(self._gateway.weights, base=digest, offset=len(body)))
            if not piece:
                raise Refusal(Reason.ALTERED, "the server sent fewer bytes of its weights than it said")
            body += piece
            seen(len(body))
        if sha256(body).hexdigest() != digest:
            raise Refusal(Reason.ALTERED, "the SHA-256 of the weights that came is not the one that the server named")
        return bytes(body)

    def _send(self, envelope: Envelope, body: bytes) -> None:
        header = envelope.header
        done = self._in_session(partial(self._gateway.announce, envelope=envelope.wire()))
        self._watcher.sending(header, done)
        while done < len(body):
            piece = body[done : done + CHUNK]
            done = self._in_session(partial(self._gateway.append, digest=header.digest, offset=done, piece=piece))
            self._watcher.sending(header, done)

    def _in_session(self, question: Callable[[str], T]) -> T:
        """Ask until there is an answer; show the key anew where the server has forgotten who asks."""
        pause_s, waited_s = POLL_S, 0.0
        while True:
            try:
                if self._token is None:
                    self._token = self._enter()
                return question(self._token)
            except Unreachable as error:
                if waited_s >= PATIENCE_S:
                    raise
                self._watcher.unreachable(error, pause_s)
                self._sleep(pause_s)
                waited_s += pause_s
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            except Refusal as refusal:
                if (
                    refusal.reason is Reason.HERE_ALREADY and waited_s < GONE_S
                ):  # perhaps this one's own, before it died
                    self._sleep(POLL_S)
                    waited_s += POLL_S
                elif refusal.reason is Reason.NO_SESSION:
                    self._token = None
                else:
                    raise

    def _enter(self) -> str:
        hello = Hello.read(self._gateway.hello())
        if self._run not in (None, hello.run):
            raise ExperimentError("the server runs another federation now; this one is over here")
        if hello.version != (own := version("fedplatform")):
            raise ExperimentError(
                f"the server runs fedplatform {hello.version}, this hospital {own}: both need the same version"
            )
        self._run = hello.run
        greeting = Greeting.sign(key=self._key, run=hello.run, hospital_id=self._hospital_id, challenge=hello.challenge)
        return self._gateway.enter(greeting.wire())


def _without_clock(task: Task) -> Task:
    return task.model_copy(update={"seconds_left": 0.0})


def _without_details(predictions: Predictions) -> Predictions:
    """The same with the kind of its failure alone: an error's words may hold a path or a value of this house."""
    kind = predictions.failure.partition(":")[0]
    return replace(predictions, failure=f"{kind}; its own log says more") if kind else predictions
