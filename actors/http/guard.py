"""In front of everything: bounds what a request may bring, and answers in JSON where Serve itself would not.

Serve's proxy takes a whole body into memory before anybody can object, answers in plain text where it is busy or not
all up yet, and with a bare 500 where the replica died that had the request in its hands. This middleware runs in the
proxy, where the environment variable :data:`actors.http.start.VARIABLE` says so (``fedplatform serve``, a federation
with hospitals outside and ``fedplatform node --head`` set it), and in the ingress in any case.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEBIBYTE = 2**20
BODY_BYTES = 64 * MEBIBYTE  # of one request, where the variable says nothing
BODY_VARIABLE = "FEDPLATFORM_BODY_BYTES"
AT_ONCE = 4  # requests of the largest size that may be under way; of smaller ones, more
RETRY_AFTER_S = 1
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

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    received: int = 0
    is_too_large: bool = False
    is_too_much: bool = False
    has_started: bool = False
    is_replaced: bool = False


class Guard:
    """ASGI middleware, see the module."""

    def __init__(self, app: ASGIApp, *, body_bytes: int | None = None, all_bytes: int | None = None) -> None:
        self._app = app
        self._body_bytes = body_bytes or allowed_body()
        self._all_bytes = all_bytes or AT_ONCE * self._body_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, bounded; answer for whoever did not."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket: nothing here speaks it
            await send({"type": "websocket.close", "code": 1003})
            return
        exchange = Exchange()
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length) > self._body_bytes:
            await self._refuse_size(exchange, send)
            return
        kept = [(name, value) for name, value in scope["headers"] if name.lower() not in SERVES_OWN]
        state = {**scope.get("state", {}), "request_id": exchange.request_id}
        scope = {**scope, "headers": kept, "state": state}

        async def bounded() -> Message:
            message = await receive()
            size = len(message.get("body", b""))
            exchange.is_too_large |= exchange.received + size > self._body_bytes
            exchange.is_too_much |= self._held + size > self._all_bytes
            if exchange.is_too_large or exchange.is_too_much:
                return {"type": "http.disconnect"}  # whoever reads stops; the answer is given below
            exchange.received += size
            self._held += size
            return message

        async def checked(message: Message) -> None:
            if exchange.is_replaced:
                return
            if message["type"] == "http.response.start":
                exchange.is_replaced = _is_serves_own(message)
                if exchange.is_replaced:
                    return
                exchange.has_started = True
                # Serve adds an id of its own; the application's is the one that stands in the audit log.
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = headers.get("x-request-id", exchange.request_id)
            await send(message)

        try:
            await self._app(scope, bounded, checked)
        except Exception:
            if exchange.is_too_large or exchange.is_too_much:
                pass  # the application saw its client leave in the middle of an upload
            elif exchange.has_started:
                raise
            else:
                log.exception("request %s failed", exchange.request_id)
                sentence = "The server failed at this request; it has been written to its log."
                await answer_error(send, 500, sentence, exchange.request_id)
                return
        finally:
            self._held -= exchange.received
        if exchange.has_started:
            return
        if exchange.is_too_large:
            await self._refuse_size(exchange, send)
        else:  # too much at once, or Serve had no answer because the replica died or is not there yet
            sentence = "The server is busy or a part of it is being started; try again."
            await answer_error(send, 503, sentence, exchange.request_id)

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
    if status == 413:  # what is still on its way is not read, so the connection is of no use
        headers.append((b"connection", b"close"))
    if status == 503:
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_serves_own(start: Message) -> bool:
    """Whether it is Serve's proxy that begins to say that something failed, and not the application.

    A 404 is Serve's where the proxy listens already and nothing is deployed behind it yet: the application, which is
    at ``/``, says of every other path in JSON that there is none.
    """
    kind = Headers(raw=list(start["headers"])).get("content-type", "")
    return int(start["status"]) in (404, 408, 500, 503) and not kind.startswith(OURS)
