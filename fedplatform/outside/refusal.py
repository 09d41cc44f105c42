"""What is said to somebody whose message is not taken, and why."""

from __future__ import annotations

from enum import StrEnum

from fedplatform.core.errors import FedplatformError


class Reason(StrEnum):
    """Why a message was refused; the ledger counts by it."""

    BROKEN = "broken"  # no message of this protocol
    STRANGER = "stranger"  # its hospital is not in the roster
    FORGED = "forged"  # not signed with that hospital's key
    NO_SESSION = "no session"  # who sends it has not shown a key, or to a server that was restarted since
    HERE_ALREADY = "here already"  # another process of this hospital is in
    FOREIGN = "foreign"  # of another run, or of another hospital than the one whose session it is
    LATE = "late"  # of a round that is over
    NOT_ASKED = "not asked for"  # of a round that is to come, or of a kind that is not due
    STALE = "stale"  # of this round, from other weights than those that were sent out
    REPLAYED = "replayed"  # its hospital has answered already
    OVERSIZE = "oversize"
    ALTERED = "altered"  # the bytes are not the ones that were signed
    MALFORMED = "malformed"  # well signed, and no update or no predictions: NaN, wrong shape, wrong type


class Refusal(FedplatformError):  # noqa: N818 - it is an answer, and nothing went wrong in the server
    """A message that changes nothing: a ``reason`` and one ``sentence`` for the person whose program sent it."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(reason, sentence)
        self.reason = reason
        self.sentence = sentence

    def __str__(self) -> str:
        return f"{self.reason}: {self.sentence}"
