"""The server's side: who is at the door, what is asked of them, which messages are taken; the ledger has the rest."""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fedplatform.core.files import write_durably
from fedplatform.core.logs import of
from fedplatform.core.mapped import release, scratch
from fedplatform.core.messages import Predictions, Update
from fedplatform.federated.transport import TRANSPORTS
from fedplatform.outside.body import (
    PREDICTIONS_BYTES,
    decode_predictions,
    decode_update,
    encode_weights,
    update_bytes,
)
from fedplatform.outside.envelope import Envelope, Greeting, Header, Kind
from fedplatform.outside.gateway_status import (
    ROSTER,
    GatewayStatus,
    HospitalStatus,
    now,
    open_roster,
    read_keys,
)
from fedplatform.outside.identity import Roster
from fedplatform.outside.ledger import Ledger
from fedplatform.outside.refusal import Reason, Refusal
from fedplatform.outside.terms import Terms
from fedplatform.outside.uploads import Uploads
from fedplatform.outside.work import CHUNK, Hello, Order, State, Task, Work, launch_number

CHALLENGE_S = 120.0  # that a hospital has to answer a challenge
STATUS_S = 1.0  # between two writings of the status
PRESENT_S = 10.0  # after its last question a hospital is taken to be here; it asks every second while it waits
RUN, LEDGER, UPLOADS = "run-id", "refusals.jsonl", "uploads"

VERSION = version("fedplatform")

log = logging.getLogger(__name__)

Answer = Update | tuple[Predictions, ...]


def run_id(folder: Path) -> str:
    """The id of the run whose gateway keeps ``folder``: drawn at its first launch, and kept for later ones."""
    file = folder / RUN
    if not file.exists():
        write_durably(file, secrets.token_hex(16).encode())
    return file.read_text()


@dataclass(frozen=True, eq=False)
class Collected:
    """What came of an order: who has answered, and what was wrong with the last answer of who has not.

    ``longest_s`` is the time of the slowest answer; 0 where there is none.
    """

    answered: frozenset[str]
    complaints: dict[str, str]
    longest_s: float = 0.0


class GatewayServer:
    """Takes one order at a time from the server and one answer to it from each hospital of the roster.

    An answer is taken if the hospital's own key signed it over this run, this round and the weights that were sent out,
    if it comes in time and for the first time, and if it is an update or predictions of the right form. Whatever is not
    changes nothing but the ledger. Methods below ``hello`` are called for hospitals, by as many threads as like to.
    ``start`` is the file of the weights that the terms let every hospital start from.
    """

    def __init__(self, roster: Roster, terms: Terms, folder: Path, start: Path | None = None) -> None:
        self._folder = folder
        self._keys = open_roster(folder, roster)
        self._keys_read = (folder / ROSTER).stat().st_mtime_ns
        self._status_written = 0.0
        self._terms = terms
        self._transport = TRANSPORTS[terms.transport]
        self._start = {terms.start.sha256: start.read_bytes()} if terms.start and start else {}
        self._ledger = Ledger(folder / LEDGER)
        self._uploads = Uploads(folder / UPLOADS)
        self._secret = secrets.token_bytes(32)
        self._greeted: dict[str, float] = {}  # challenges that were answered, until they are too old anyway
        self._sessions: dict[str, str] = {}  # hospital by token
        self._last_asked: dict[str, float] = {}  # for work, by hospital
        self._heard_at: dict[str, str] = {}
        self._order: Order | None = None
        self._asked: frozenset[str] = frozenset()
        self._weights, self._base = b"", ""
        self._size = 0
        self._due_at = self._asked_at = 0.0
        self._heard: set[str] = set()  # who has asked for work since the order
        self._longest_s = 0.0
        self._is_open = False
        self._is_finished = False
        self._answers: dict[str, Answer] = {}
        self._table = scratch(0, 0)  # of the updates among them
        self._complaints: dict[str, str] = {}
        self._farewells: set[str] = set()
        self._changed = threading.Condition(threading.RLock())

    @property
    def _roster(self) -> Roster:
        """Who may come; its file may be changed while the run goes on."""
        changed = (self._folder / ROSTER).stat().st_mtime_ns
        if changed != self._keys_read:
            self._keys, self._keys_read = Roster(read_keys(self._folder)), changed
            self._sessions = {token: name for token, name in self._sessions.items() if name in self._keys.keys}
            log.info("the roster is now %s", ", ".join(self._keys.keys) or "empty")
        return self._keys

    def _tell(self) -> None:
        """Write the status, at most once a second."""
        if time.monotonic() - self._status_written < STATUS_S:
            return
        self._status_written = time.monotonic()
        order = self._order
        joined = set(self._sessions.values())
        awaited = self._asked - self._answers.keys() if self._is_open else frozenset()
        status = GatewayStatus(
            run=self._terms.run,
            round_number=order.round_number if order else 0,
            order=str(order.kind) if order else "",
            written=now(),
            hospitals=tuple(
                HospitalStatus(name, name in joined, self._heard_at.get(name, ""), name in awaited)
                for name in sorted(self._roster.keys)
            ),
        )
        with suppress(OSError):  # a full disk ends no round
            status.write(self._folder)

    def ask(self, order: Order) -> None:
        """Put an order up; the one before is over. The same order once more changes nothing."""
        weights = encode_weights(order.weights)
        base = sha256(weights).hexdigest()
        with self._changed:
            before = self._order
            if before and (before.kind, before.round_number, before.launch, self._base) == (
                *(order.kind, order.round_number, order.launch),
                base,
            ):
                return
            self._order, self._weights, self._base, self._size = order, weights, base, order.weights.size
            self._asked = frozenset(self._roster.keys if order.asked is None else order.asked)
            self._asked_at, self._longest_s = time.monotonic(), 0.0
            self._due_at = self._asked_at + order.deadline_s
            self._heard = set()
            self._is_open = True
            self._answers, self._complaints = {}, {}
            updates = len(self._asked) if order.kind is Kind.UPDATE else 0
            self._table = scratch(updates, order.weights.size)
            log.info(
                "asks %s for %s", ", ".join(sorted(self._asked)), order.kind, extra=of(round_number=order.round_number)
            )
            self._status_written = 0.0
            self._tell()

    def collect(self, timeout_s: float, silent: frozenset[str] = frozenset()) -> Collected:
        """Wait until all hospitals have answered or the time is up; after that the order takes no answer.

        Those who are ``silent`` and have not been heard since the order are waited for only as long again as the others
        took.
        """
        until = time.monotonic() + timeout_s
        with self._changed:
            others_done = 0.0
            while left := self._asked - self._answers.keys():
                now = time.monotonic()
                if left - (silent - self._heard):
                    others_done, end = 0.0, until
                else:
                    others_done = others_done or now
                    end = min(until, 2 * others_done - self._asked_at)
                if now >= end:
                    break
                self._changed.wait(end - now)
            self._is_open = False
            self._status_written = 0.0
            self._tell()
            return Collected(frozenset(self._answers), dict(self._complaints), self._longest_s)

    def answer(self, hospital_id: str) -> Answer | None:
        """What a hospital has answered to the order; None where nothing was taken."""
        with self._changed:
            return self._answers.get(hospital_id)

    def finish(self, timeout_s: float) -> None:
        """There will be no more orders; wait until those who are here have heard so, or the time is up."""
        with self._changed:
            self._is_finished, self._is_open = True, False
            self._changed.wait_for(lambda: self._farewells >= set(self._sessions.values()), timeout=timeout_s)

    def hello(self) -> bytes:
        """A challenge for whoever knocks."""
        # The time, and a draw of its own: two who knock in the same millisecond must not be given one challenge.
        drawn = int(time.monotonic() * 1000).to_bytes(8, "big") + secrets.token_bytes(8)
        return Hello(run=self._terms.run, challenge=(drawn + self._stamp(drawn)).hex(), version=VERSION).wire()

    def enter(self, greeting: bytes) -> str:
        """Let a hospital in that has signed a challenge; the token of its session. Raises :class:`Refusal`."""
        claimed: dict[str, object] = {}
        with self._recording(claimed):
            read = Greeting.read(greeting)
            claimed |= {"hospital": read.hospital, "run": read.run}
            read.check(self._roster)
            if read.run != self._terms.run:
                raise Refusal(Reason.FOREIGN, "this is another run")
            self._use_up(read.challenge)
            if time.monotonic() - self._last_asked.get(read.hospital, -PRESENT_S) < PRESENT_S:
                raise Refusal(Reason.HERE_ALREADY, f"{read.hospital} is here already, from another process or machine")
            token = secrets.token_urlsafe(32)
            log.info("joined", extra=of(hospital=read.hospital))
            self._sessions = {t: name for t, name in self._sessions.items() if name != read.hospital}
            self._sessions[token] = read.hospital
            return token

    def terms(self, token: str) -> bytes:
        """The terms of this run, as JSON."""
        with self._recording({}):
            self._who(token)
            return self._terms.model_dump_json().encode()

    def work(self, token: str) -> bytes:
        """What the hospital has to do now."""
        with self._recording({}):
            hospital_id = self._who(token)
            self._last_asked[hospital_id] = time.monotonic()
            self._heard_at[hospital_id] = now()
            self._tell()
            if hospital_id not in self._heard:
                self._heard.add(hospital_id)
                self._changed.notify_all()
            if self._is_finished:
                self._farewells.add(hospital_id)
                self._changed.notify_all()
                return Work(state=State.FINISHED).wire()
            to_do = hospital_id in self._asked and hospital_id not in self._answers
            if self._order is None or not self._is_open or not to_do:
                return Work(state=State.WAIT).wire()
            launch = self._order.launch
            task = Task(
                kind=self._order.kind,
                round=self._order.round_number,
                base=self._base,
                size=len(self._weights),
                roles=self._order.roles,
                launch=(launch.number, launch.resumed_from) if launch else None,
                seconds_left=round(max(0.0, self._due_at - time.monotonic()), 1),
            )
            return Work(state=State.WORK, task=task).wire()

    def weights(self, token: str, base: str, offset: int) -> bytes:
        """The next piece of the weights of this order, or of those to start from."""
        with self._recording({"base": base}):
            self._who(token)
            weights = self._weights if base == self._base else self._start.get(base)
            if weights is None:
                raise Refusal(Reason.LATE, "these weights are not those of the round under way")
            return weights[max(0, offset) : max(0, offset) + CHUNK]

    def announce(self, token: str, envelope: bytes) -> int:
        """Announce a message by its envelope; how many of its bytes are here already."""
        claimed: dict[str, object] = {}
        with self._recording(claimed):
            hospital_id = self._who(token)
            claimed["session"] = hospital_id
            read = Envelope.read(envelope)
            claimed |= _claims(read.header)
            read.check(self._roster)
            self._require_due(read.header, hospital_id)
            return self._uploads.begin(hospital_id, read)

    def append(self, token: str, digest: str, offset: int, piece: bytes) -> int:
        """Add a piece to the message of this digest; how many bytes are here now. With the last, it is read.

        A piece that does not begin where the last ended is left alone, and the answer says where to go on.
        """
        claimed: dict[str, object] = {"digest": digest[:64]}
        with self._recording(claimed):
            hospital_id = self._who(token)
            claimed["session"] = hospital_id
            envelope = self._uploads.announced(hospital_id)
            if envelope is None or envelope.header.digest != digest:
                raise Refusal(Reason.NOT_ASKED, "no message of this digest was announced")
            header = envelope.header
            claimed |= _claims(header)
            self._require_due(header, hospital_id)
            received = self._uploads.received(hospital_id)
            if offset != received:
                return received
            if len(piece) > CHUNK or received + len(piece) > header.size:
                self._uploads.drop(hospital_id)
                raise Refusal(Reason.OVERSIZE, f"a piece has at most {CHUNK} bytes, and no more than were announced")
            received = self._uploads.append(hospital_id, piece)
            if received == header.size:
                self._answers[hospital_id] = self._kept(self._read(self._uploads.take(hospital_id), header))
                self._longest_s = time.monotonic() - self._asked_at
                log.info("%s taken", header.kind, extra=of(round_number=header.round, hospital=hospital_id))
                self._changed.notify_all()
            return received

    def refuse(self, reason: Reason, sentence: str) -> None:
        """Write down what was turned away before it came here: too large to be read."""
        self._ledger.write_down(Refusal(reason, sentence))

    def _kept(self, answer: Answer) -> Answer:
        """An answer that takes no memory until the server asks for it, where updates together are too many."""
        if not isinstance(answer, Update):
            return answer
        row = self._table[sum(isinstance(other, Update) for other in self._answers.values())]
        row[:] = answer.delta
        release(self._table)
        return replace(answer, delta=row.view(np.ndarray))

    def _read(self, body: bytes, header: Header) -> Answer:
        if sha256(body).hexdigest() != header.digest:
            raise Refusal(Reason.ALTERED, "the SHA-256 of what came is not the one that was signed")
        if header.kind is Kind.UPDATE:
            return decode_update(
                body,
                hospital_id=header.hospital,
                round_number=header.round,
                size=self._size,
                transport=self._transport,
            )
        assert self._order is not None
        classes = len(self._terms.classes)
        return decode_predictions(
            body,
            hospital_id=header.hospital,
            roles=self._order.roles,
            num_classes=classes,
            task=self._terms.task,
        )

    def _require_due(self, header: Header, hospital_id: str) -> None:
        """Raise :class:`Refusal` unless this is what this hospital is asked for now."""
        if header.hospital != hospital_id:
            raise Refusal(Reason.FOREIGN, "this message is another hospital's")
        if header.run != self._terms.run:
            raise Refusal(Reason.FOREIGN, "this message is of another run")
        order = self._order
        due = (order.round_number, order.kind is Kind.PREDICTIONS) if order else (0, False)
        got = (header.round, header.kind is Kind.PREDICTIONS)
        if got < due:
            raise Refusal(Reason.LATE, f"round {header.round} has its {header.kind} already")
        if order is None or got > due or hospital_id not in self._asked:
            raise Refusal(Reason.NOT_ASKED, f"{header.kind} of round {header.round} is not due")
        if header.launch != launch_number(order.launch):
            raise Refusal(Reason.STALE, "this was made before the server went back; it may be made again")
        if header.base != self._base:
            raise Refusal(Reason.STALE, "this was made from other weights than those that were sent out")
        if hospital_id in self._answers:
            raise Refusal(Reason.REPLAYED, "this hospital has answered already")
        if not self._is_open:
            raise Refusal(Reason.LATE, f"the time for {header.kind} of round {header.round} is over")
        most = update_bytes(self._size, self._transport) if header.kind is Kind.UPDATE else PREDICTIONS_BYTES
        if header.size > most:
            raise Refusal(Reason.OVERSIZE, f"{header.kind} has at most {most} bytes, {header.size} were announced")

    @contextmanager
    def _recording(self, claimed: dict[str, object]) -> Iterator[None]:
        """Alone, and whatever is refused is written down."""
        with self._changed:
            try:
                yield
            except Refusal as refusal:
                self._ledger.write_down(refusal, **claimed)
                log.info("refused: %s", refusal, extra=of(hospital=str(claimed.get("session", ""))))
                if refusal.reason in (Reason.MALFORMED, Reason.OVERSIZE) and "session" in claimed:
                    self._complaints[str(claimed["session"])] = refusal.sentence
                raise

    def _who(self, token: str) -> str:
        hospital_id = self._sessions.get(token)
        if hospital_id is None or hospital_id not in self._roster.keys:
            raise Refusal(Reason.NO_SESSION, "this session is not known; show the key again")
        return hospital_id

    def _stamp(self, drawn: bytes) -> bytes:
        return hmac.digest(self._secret, drawn, "sha256")[:16]

    def _use_up(self, challenge: str) -> None:
        """Raise :class:`Refusal` unless this challenge was drawn here, not long ago, and never answered before."""
        given = bytes.fromhex(challenge)
        now = time.monotonic()
        age = now - int.from_bytes(given[:8], "big") / 1000
        if not hmac.compare_digest(given[16:], self._stamp(given[:16])) or age > CHALLENGE_S:
            raise Refusal(Reason.LATE, "this challenge is too old, or not of this server")
        if challenge in self._greeted:
            raise Refusal(Reason.REPLAYED, "this challenge was answered already")
        self._greeted = {known: until for known, until in self._greeted.items() if until > now}
        self._greeted[challenge] = now + CHALLENGE_S


def _claims(header: Header) -> dict[str, object]:
    """What a message says of itself, for the ledger."""
    return {
        "hospital": header.hospital,
        "run": header.run,
        "launch": header.launch,
        "round": header.round,
        "kind": header.kind,
        "size": header.size,
        "digest": header.digest,
    }
