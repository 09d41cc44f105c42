"""In front of everything: bounds what a request may bring, and answers in JSON where Serve itself would not.

No client holds up the others: an upload that stalls is ended, and what the uploads of one key (or, without a key, of
one address) hold at a time is bounded, in bytes and in number.

Serve's proxy takes a whole body into memory before anybody can object, answers in plain text where it is busy or not
all up yet, and with a bare 500 where the replica died that had the request in its hands. This middleware runs in the
proxy, where the environment variable :data:`actors.http.start.VARIABLE` says so (``fedplatform serve``, a federation
with hospitals outside and ``fedplatform node --head`` set it), and in the ingress in any case.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import uuid
from collections import Counter
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEBIBYTE = 2**20
BODY_BYTES = 64 * MEBIBYTE  # of one request, where the variable says nothing
BODY_VARIABLE = "FEDPLATFORM_BODY_BYTES"
AT_ONCE = 4  # requests of the largest size that may be under way; of smaller ones, more
CLIENT_SHARE = 0.5  # of what they hold together, for the requests of one client
CLIENT_UPLOADS = 32  # of one client that are not complete
STALL_S = 15.0  # without a byte, an upload is over
RETRY_AFTER_S = 1
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CARRIED_ID = "x-client-request-id"  # Serve would take x-request-id for its own
# By these a client could change how Serve treats its requests: wait for ever, go to a replica of its choice.
SERVES_OWN = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"x-request-id",
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
        b"x-session-id",
    }
)
OURS = ("application/json", "text/html", "text/css", "text/javascript", "image/png")

log = logging.getLogger("ray.serve")  # of which Serve keeps the files


def allowed_body() -> int:
    """Bytes that one request may bring in this process."""
    return int(os.environ.get(BODY_VARIABLE, BODY_BYTES))


def middlewares() -> list[Middleware]:
    """What Serve's proxy is told to put in front of itself."""
    return [Middleware(Guard)]


@dataclass
class Exchange:
    """One request under way: what it brought so far, what was answered."""

    request_id: str
    client: str
    received: int = 0
    is_complete: bool = False
    is_too_large: bool = False
    is_too_much: bool = False
    is_stalled: bool = False
    has_started: bool = False
    is_replaced: bool = False


class Guard:
    """ASGI middleware, see the module."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        body_bytes: int | None = None,
        all_bytes: int | None = None,
        stall_s: float = STALL_S,
    ) -> None:
        self._app = app
        self._body_bytes = body_bytes or allowed_body()
        self._all_bytes = all_bytes or AT_ONCE * self._body_bytes
        self._client_bytes = max(self._body_bytes, CLIENT_SHARE * self._all_bytes)
        self._stall_s = stall_s
        self._held: Counter[str] = Counter()  # bytes by client
        self._uploads: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, bounded; answer for whoever did not."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket: nothing here speaks it
            await send({"type": "websocket.close", "code": 1003})
            return
        given = Headers(scope=scope)
        is_empty = given.get("content-length", "0") == "0" and "transfer-encoding" not in given
        exchange = Exchange(_request_id(given), _client(given, scope), is_complete=is_empty)
        length = given.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._body_bytes:
            await self._refuse_size(exchange, send)
            return
        kept = [(name, value) for name, value in scope["headers"] if name.lower() not in SERVES_OWN]
        kept = [(name, value) for name, value in kept if name.lower() != CARRIED_ID.encode()]
        kept.append((CARRIED_ID.encode(), exchange.request_id.encode()))
        state = {**scope.get("state", {}), "request_id": exchange.request_id}
        scope = {**scope, "headers": kept, "state": state}

        async def bounded() -> Message:
            try:  # behind the last byte the next message is that the client leaves, and that may take its time
                message = await asyncio.wait_for(receive(), None if exchange.is_complete else self._stall_s)
            except TimeoutError:
                exchange.is_stalled = True
                return {"type": "http.disconnect"}  # whoever reads stops; the answer is given below
            size = len(message.get("body", b""))
            exchange.is_too_large |= exchange.received + size > self._body_bytes
            exchange.is_too_much |= self._held.total() + size > self._all_bytes
            exchange.is_too_much |= self._held[exchange.client] + size > self._client_bytes
            if exchange.is_too_large or exchange.is_too_much:
                return {"type": "http.disconnect"}
            exchange.received += size
            self._held[exchange.client] += size
            if not message.get("more_body"):
                self._completed(exchange)
            return message

        async def checked(message: Message) -> None:
            if exchange.is_replaced:
                return
            if message["type"] == "http.response.start":
                exchange.is_replaced = _is_serves_own(message)
                if exchange.is_replaced:
                    return
                exchange.has_started = True
                # Serve adds an id of its own; this one stands in the audit log.
                MutableHeaders(scope=message)["x-request-id"] = exchange.request_id
            await send(message)

        if not is_empty and self._uploads[exchange.client] >= CLIENT_UPLOADS:
            sentence = f"{CLIENT_UPLOADS} uploads of this client are not complete yet; finish them first."
            await answer_error(send, 503, sentence, exchange.request_id)
            return
        self._uploads[exchange.client] += not is_empty
        try:
            await self._app(scope, bounded, checked)
        except Exception:
            if exchange.is_too_large or exchange.is_too_much or exchange.is_stalled:
                pass  # the application saw its client leave in the middle of an upload
            elif exchange.has_started:
                raise
            else:
                log.exception("request %s failed", exchange.request_id)
                sentence = "The server failed at this request; it has been written to its log."
                await answer_error(send, 500, sentence, exchange.request_id)
                return
        finally:
            self._completed(exchange)
            self._held[exchange.client] -= exchange.received
            self._held += Counter()  # forgets the clients that hold nothing
        if exchange.has_started:
            return
        if exchange.is_too_large:
            await self._refuse_size(exchange, send)
        elif exchange.is_stalled:
            sentence = f"The upload stalled: nothing came for {self._stall_s:g} seconds."
            await answer_error(send, 408, sentence, exchange.request_id)
        else:  # too much at once, or Serve had no answer because the replica died or is not there yet
            sentence = "The server is busy or a part of it is being started; try again."
            await answer_error(send, 503, sentence, exchange.request_id)

    def _completed(self, exchange: Exchange) -> None:
        if not exchange.is_complete:
            exchange.is_complete = True
            self._uploads[exchange.client] -= 1
            self._uploads += Counter()

    async def _refuse_size(self, exchange: Exchange, send: Send) -> None:
        sentence = f"A request may hold {self._body_bytes // MEBIBYTE} MiB at most."
        await answer_error(send, 413, sentence, exchange.request_id)


async def answer_error(send: Send, status: int, sentence: str, request_id: str) -> None:
    """Send one sentence as the whole answer."""
    body = json.dumps({"request_id": request_id, "error": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    if status in (408, 413):  # what is still on its way is not read, so the connection is of no use
        headers.append((b"connection", b"close"))
    if status == 503:
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _request_id(headers: Headers) -> str:
    """The client's own id, where it is one that fits into a log; else a new one.

    Behind the first guard x-request-id is Serve's, so what that guard carries on comes first.
    """
    wanted = headers.get(CARRIED_ID) or headers.get("x-request-id", "")
    return wanted if REQUEST_ID.fullmatch(wanted) else uuid.uuid4().hex


def _client(headers: Headers, scope: Scope) -> str:
    """Who sends a request: whoever has its key, or else the address. The key itself is not kept."""
    secret = headers.get("x-api-key") or headers.get("authorization")
    if secret:
        return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
    return str((scope.get("client") or ("",))[0])


def _is_serves_own(start: Message) -> bool:
    """Whether it is Serve's proxy that begins to say that something failed, and not the application.

    A 404 is Serve's where the proxy listens already and nothing is deployed behind it yet: the application, which is
    at ``/``, says of every other path in JSON that there is none.
    """
    kind = Headers(raw=list(start["headers"])).get("content-type", "")
    return int(start["status"]) in (404, 408, 500, 503) and not kind.startswith(OURS)
