"""What tests of hospitals outside share: keys, terms, and whatever somebody could send instead of an update."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save

from fedplatform.core.messages import Update
from fedplatform.outside.agent import GatewayTransport, Unreachable
from fedplatform.outside.body import update_bytes
from fedplatform.outside.envelope import Envelope, Greeting, Kind
from fedplatform.outside.identity import Roster, public_half
from fedplatform.outside.refusal import Reason, Refusal
from fedplatform.outside.terms import Start
from fedplatform.outside.work import CHUNK, Hello, Task


@dataclass
class Silent:
    """A watcher that keeps what it is told."""

    refusals: list[Refusal] = field(default_factory=list)
    breaks: int = 0
    resumed_at: list[int] = field(default_factory=list)
    start_bytes: list[int] = field(default_factory=list)

    def unreachable(self, error: Unreachable, pause_s: float) -> None:
        self.breaks += 1

    def fetching_start(self, start: Start, done: int) -> None:
        self.start_bytes.append(done)

    def fetching(self, task: Task, done: int) -> None:
        pass

    def working(self, task: Task) -> None:
        pass

    def sending(self, header: object, done: int) -> None:
        self.resumed_at.append(done)

    def refused(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)


def keys_of(*hospital_ids: str) -> dict[str, Ed25519PrivateKey]:
    return {name: Ed25519PrivateKey.generate() for name in hospital_ids}


def roster_of(keys: dict[str, Ed25519PrivateKey]) -> Roster:
    return Roster({name: public_half(key) for name, key in keys.items()})


def session(transport: GatewayTransport, hospital_id: str, key: Ed25519PrivateKey) -> str:
    hello = Hello.read(transport.hello())
    signed = Greeting.sign(key=key, run=hello.run, hospital_id=hospital_id, challenge=hello.challenge)
    return transport.enter(signed.wire())


def update(size: int, *, hospital_id: str = "a", round_number: int = 2, scans: int = 5, fill: float = 0.5) -> Update:
    return Update(hospital_id, round_number, np.full(size, fill, np.float32), scans, 0.25, 1.0)


@dataclass
class Forger:
    """Sends what must be refused, through the session of hospital ``a``, some of it in the name of ``b``."""

    transport: GatewayTransport
    keys: dict[str, Ed25519PrivateKey]  # of a and b, and of one that the roster does not know
    run: str
    round_number: int
    base: str
    size: int
    token: str
    answered: Envelope  # of b
    random: np.random.Generator

    def good(self, body: bytes | None = None, **changes: object) -> Envelope:
        """An envelope for hospital a that differs from a right one in what is given."""
        said: dict[str, object] = {
            "key": self.keys["a"],
            "run": self.run,
            "launch": 0,
            "hospital_id": "a",
            "round_number": self.round_number,
            "kind": Kind.UPDATE,
            "base": self.base,
        }
        return Envelope.seal(self.body() if body is None else body, **{**said, **changes})  # type: ignore[arg-type]

    def body(self, **tensors: np.ndarray) -> bytes:
        plain = {
            "delta": np.full(self.size, self.random.normal(), np.float32),
            "num_examples": np.array([5]),
            "train_loss": np.array([0.5]),
            "seconds": np.array([1.0]),
        }
        return save({**plain, **tensors})

    def announce(self, envelope: Envelope | bytes) -> None:
        wire = envelope if isinstance(envelope, bytes) else envelope.wire()
        self.transport.announce(self.token, wire)

    def send(self, body: bytes, envelope: Envelope | None = None) -> None:
        envelope = envelope or self.good(body)
        done = self.transport.announce(self.token, envelope.wire())
        while done < len(body):
            done = self.transport.append(self.token, envelope.header.digest, done, body[done : done + CHUNK])

    def resigned(self, **changes: object) -> bytes:
        """A right message, changed after it was signed."""
        values = json.loads(self.good().wire())
        values["header"] |= changes
        return json.dumps(values).encode()

    def flipped(self) -> bytes:
        values = json.loads(self.good().wire())
        at = int(self.random.integers(128))
        digits = list(values["signature"])
        digits[at] = "0" if digits[at] != "0" else "1"
        return json.dumps(values | {"signature": "".join(digits)}).encode()

    def altered(self) -> None:
        body = bytearray(self.body())
        envelope = self.good(bytes(body))
        body[-1 - int(self.random.integers(4 * self.size))] ^= 1 << int(self.random.integers(8))
        self.send(bytes(body), envelope)

    def spoilt(self, value: float) -> None:
        delta = np.zeros(self.size, np.float32)
        delta[int(self.random.integers(self.size))] = value
        self.send(self.body(delta=delta))

    def cut_short(self) -> None:
        body = self.body()
        self.send(body[: int(self.random.integers(1, len(body)))])

    def greet_with_anothers_key(self) -> None:
        session(self.transport, "a", self.keys["b"])

    def greet_twice(self) -> None:
        hello = Hello.read(self.transport.hello())
        signed = Greeting.sign(key=self.keys["b"], run=hello.run, hospital_id="b", challenge=hello.challenge).wire()
        self.transport.enter(signed)
        self.transport.enter(signed)

    def come_as_who_is_here(self) -> None:
        self.transport.work(self.token)
        session(self.transport, "a", self.keys["a"])

    def attacks(self) -> list[tuple[Reason, Callable[[], object]]]:
        """What is sent, and the reason for which it must be refused."""
        number = self.round_number
        other = "0" * 32
        wide = np.zeros(self.size + 1, np.float32)
        return [
            (Reason.FORGED, lambda: self.announce(self.good(key=self.keys["b"]))),
            (Reason.FORGED, lambda: self.announce(self.good(key=self.keys["stranger"]))),
            (Reason.FORGED, lambda: self.announce(self.flipped())),
            (Reason.FORGED, lambda: self.announce(self.resigned(round=number + 1))),
            (Reason.FORGED, lambda: self.announce(self.resigned(digest="1" * 64))),
            (Reason.FORGED, lambda: self.announce(self.resigned(hospital="b"))),
            (Reason.FORGED, self.greet_with_anothers_key),
            (
                Reason.STRANGER,
                lambda: self.announce(self.good(hospital_id="stranger", key=self.keys["stranger"])),
            ),
            (Reason.STRANGER, lambda: session(self.transport, "stranger", self.keys["stranger"])),
            (Reason.FOREIGN, lambda: self.announce(self.good(hospital_id="b", key=self.keys["b"]))),
            (Reason.FOREIGN, lambda: self.announce(self.good(run=other))),
            (Reason.FOREIGN, lambda: self.announce(self.answered)),
            (Reason.LATE, lambda: self.announce(self.good(round_number=int(self.random.integers(1, number))))),
            (Reason.NOT_ASKED, lambda: self.announce(self.good(round_number=number + 1))),
            (Reason.NOT_ASKED, lambda: self.announce(self.good(kind=Kind.PREDICTIONS))),
            (Reason.NOT_ASKED, lambda: self.transport.append(self.token, "2" * 64, 0, b"unannounced")),
            (Reason.STALE, lambda: self.announce(self.good(base="3" * 64))),
            (Reason.STALE, lambda: self.announce(self.good(launch=1))),
            (Reason.REPLAYED, self.greet_twice),
            (Reason.OVERSIZE, lambda: self.announce(self.good(bytes(update_bytes(self.size) + 1)))),
            (Reason.OVERSIZE, lambda: self.announce(self.good().wire() + b" " * 4096)),
            (Reason.OVERSIZE, self.too_long),
            (Reason.ALTERED, self.altered),
            (Reason.BROKEN, lambda: self.announce(self.good().wire()[: int(self.random.integers(300))])),
            (Reason.BROKEN, lambda: self.announce(self.random.bytes(100))),
            (Reason.BROKEN, lambda: self.announce(self.resigned(more="fields"))),
            (Reason.BROKEN, lambda: self.announce(self.resigned(round="2"))),
            (Reason.BROKEN, lambda: self.announce(pickle.dumps({"header": 1}))),
            (Reason.MALFORMED, lambda: self.spoilt(float("nan"))),
            (Reason.MALFORMED, lambda: self.spoilt(float("inf"))),
            (Reason.MALFORMED, lambda: self.send(self.body(delta=wide))),
            (Reason.MALFORMED, lambda: self.send(self.body(delta=np.zeros((self.size, 1), np.float32)))),
            (Reason.MALFORMED, lambda: self.send(self.body(delta=np.zeros(self.size // 2)))),
            (Reason.MALFORMED, lambda: self.send(self.body(more=np.zeros(1)))),
            (Reason.MALFORMED, lambda: self.send(self.body(num_examples=np.array([0])))),
            (Reason.MALFORMED, lambda: self.send(self.body(num_examples=np.array([2**62])))),
            (Reason.MALFORMED, lambda: self.send(pickle.dumps(update(self.size)))),
            (Reason.MALFORMED, self.cut_short),
            (Reason.HERE_ALREADY, self.come_as_who_is_here),
            (Reason.NO_SESSION, lambda: self.transport.announce("a guess", self.good().wire())),
            (Reason.NO_SESSION, lambda: self.transport.work("")),
        ]

    def too_long(self) -> None:
        body = self.body()
        envelope = self.good(body)
        self.transport.append(
            self.token, envelope.header.digest, self.transport.announce(self.token, envelope.wire()), body + b"more"
        )


def reasons(ledger: Path) -> list[str]:
    return [json.loads(line)["reason"] for line in ledger.read_text().splitlines()]


def answer(transport: GatewayTransport, token: str, envelope: Envelope, body: bytes) -> None:
    done = transport.announce(token, envelope.wire())
    while done < len(body):
        done = transport.append(token, envelope.header.digest, done, body[done : done + CHUNK])
