"""Who asks, for which hospital, and how often."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from actors.endpoint.arguments import EndpointArguments
from fedplatform.serving.api_keys import Keys, KeysError
from fedplatform.serving.intake import Refused
from fedplatform.serving.rate import TokenBucket

log = logging.getLogger("ray.serve")  # of which Serve keeps the files

NO_KEY = "-"  # in the place of a key's id, where nobody is asked for one


class TooFast(Exception):  # noqa: N818 - an answer, not an error
    """A key asked more often than it may; ``retry_after_s`` says when to come back."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Caller:
    """Somebody who was let in; ``hospital_id`` is the one that the key opens, None where no keys are asked for."""

    key_id: str
    hospital_id: str | None

    def chosen(self, wanted: str | None, hospitals: Sequence[str]) -> str:
        """The hospital whose model is to answer; raises :class:`Refused`."""
        if self.hospital_id is not None:
            if wanted not in (None, self.hospital_id):
                raise Refused(403, "This key opens another hospital's model.")
            if self.hospital_id not in hospitals:
                log.warning("key %s is for %r, which has no model here", self.key_id, self.hospital_id)
                raise Refused(503, "The hospital of this key has no model on this server; tell whoever runs it.")
            return self.hospital_id
        if wanted is None and len(hospitals) == 1:
            return hospitals[0]
        if wanted is None:
            raise Refused(422, "Say which hospital's model is to answer: ?hospital=NAME.")
        return wanted

    def opens(self, hospitals: Sequence[str]) -> tuple[str, ...]:
        """Those of the hospitals whose models this caller may ask."""
        return tuple(name for name in hospitals if self.hospital_id in (None, name))


class Authenticator:
    """Lets callers in by their key, and counts what each of them sends."""

    def __init__(self, arguments: EndpointArguments) -> None:
        # Not read yet: a replica that starts while the file is broken would never come up.
        self._keys = Keys(Path(arguments.keys)) if arguments.keys else None
        self._trouble = ""
        self._rate, self._burst = arguments.rate, arguments.burst
        self._buckets: dict[str, TokenBucket] = {}

    @property
    def asks_for_a_key(self) -> bool:
        """Whether nobody is let in without a key."""
        return self._keys is not None

    def caller(self, request: Request) -> Caller:
        """Who sent a request.

        Raises :class:`Refused` with 401 where the key is missing or opens nothing, with 503 where the file of keys
        cannot be read: then nobody is let in, and the server's log says why.
        """
        if self._keys is None:
            return Caller(NO_KEY, None)
        secret = request.headers.get("x-api-key", "")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not secret and scheme.lower() == "bearer":
            secret = token.strip()
        if not secret:
            raise Refused(401, "An API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY.")
        try:
            key = self._keys.opened_by(secret)
        except KeysError as error:
            if str(error) != self._trouble:
                log.error("the API keys cannot be read, and nobody is let in: %s", error)
            self._trouble = str(error)
            raise Refused(503, "The server cannot read its API keys at the moment; try again.") from error
        self._trouble = ""
        if key is None:
            raise Refused(401, "This API key opens nothing: it is unknown, revoked or expired.")
        return Caller(key.key_id, key.hospital_id)

    def count(self, caller: Caller, scans: int) -> None:
        """Take so many scans from what the caller may send; raises :class:`TooFast`."""
        bucket = self._buckets.setdefault(caller.key_id, TokenBucket(self._rate, self._burst))
        wait_s = bucket.take(time.monotonic(), scans)
        if math.isinf(wait_s):
            raise Refused(413, f"At most {self._burst} scans may be sent at once.")
        if wait_s > 0:
            raise TooFast(math.ceil(wait_s))
