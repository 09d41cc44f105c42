"""What a hospital signs: run, launch, round, kind, the weights it started from, and the digest of what it sends."""

from __future__ import annotations

import json
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from fedplatform.outside.identity import Roster
from fedplatform.outside.refusal import Reason, Refusal
from fedplatform.outside.strict import Strict

# In front of what is signed, so that a signature for one purpose is none for another.
MESSAGE, SESSION = b"fedplatform message\n", b"fedplatform session\n"

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
RunId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
HospitalId = Annotated[str, Field(min_length=1, max_length=64)]
Signature = Annotated[str, Field(pattern="^[0-9a-f]{128}$")]


class Kind(StrEnum):
    """What a message holds."""

    UPDATE = "update"
    PREDICTIONS = "predictions"


class Header(Strict):
    """What a message is; ``base`` is the SHA-256 of the weights as they were sent out, ``digest`` that of the body.

    ``launch`` is the number of the server's launch, 0 where it counts none.
    """

    run: RunId
    launch: int = Field(ge=0, le=2**40)
    hospital: HospitalId
    round: int = Field(ge=1, le=10**9)
    kind: Kind
    base: Digest
    size: int = Field(ge=1, le=2**40)
    digest: Digest


class Envelope(Strict):
    """A header and its hospital's signature; the body follows in pieces."""

    header: Header
    signature: Signature

    @classmethod
    def seal(
        cls,
        body: bytes,
        *,
        key: Ed25519PrivateKey,
        run: str,
        launch: int,
        hospital_id: str,
        round_number: int,
        kind: Kind,
        base: str,
    ) -> Self:
        """Sign a body."""
        header = Header(
            run=run,
            launch=launch,
            hospital=hospital_id,
            round=round_number,
            kind=kind,
            base=base,
            size=len(body),
            digest=sha256(body).hexdigest(),
        )
        return cls(header=header, signature=key.sign(MESSAGE + header.wire()).hex())

    def check(self, roster: Roster) -> None:
        """Raise :class:`Refusal` unless the hospital that it names has signed it."""
        _check(roster, self.header.hospital, MESSAGE + self.header.wire(), self.signature)


class Greeting(Strict):
    """How a hospital shows that it holds its key: it signs a number that the server has just drawn."""

    run: RunId
    hospital: HospitalId
    challenge: Digest
    signature: Signature

    @classmethod
    def sign(cls, *, key: Ed25519PrivateKey, run: str, hospital_id: str, challenge: str) -> Self:
        """Answer a challenge."""
        signature = key.sign(_signed_bytes(run, hospital_id, challenge)).hex()
        return cls(run=run, hospital=hospital_id, challenge=challenge, signature=signature)

    def check(self, roster: Roster) -> None:
        """Raise :class:`Refusal` unless the hospital that it names has signed it."""
        _check(roster, self.hospital, _signed_bytes(self.run, self.hospital, self.challenge), self.signature)


def _signed_bytes(run: str, hospital_id: str, challenge: str) -> bytes:
    return SESSION + json.dumps([run, hospital_id, challenge]).encode()


def _check(roster: Roster, hospital_id: str, message: bytes, signature: str) -> None:
    if hospital_id not in roster.keys:
        raise Refusal(Reason.STRANGER, "no hospital of this name is in the roster")
    if not roster.has_signed(hospital_id, message, bytes.fromhex(signature)):
        raise Refusal(Reason.FORGED, "the signature is not of this hospital's key")
