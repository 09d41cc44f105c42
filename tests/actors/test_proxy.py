from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from actors.http.guard import CLIENT_UPLOADS, Guard

App = Callable[[dict, Callable[[], Awaitable[dict]], Callable[[dict], Awaitable[None]]], Awaitable[None]]


def asked(app: App, *bodies: bytes, headers: dict[str, str] | None = None, **bounds: int) -> tuple[int, dict, bytes]:
    """Status, headers and body that come out of the guard in front of an application."""
    messages = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[dict] = []

    async def receive() -> dict:
        return messages.pop(0)

    async def send(message: dict) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "headers": raw, "path": "/", "method": "POST"}
    asyncio.run(Guard(app, **bounds)(scope, receive, send))
    start, *rest = sent
    said = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], said, b"".join(message.get("body", b"") for message in rest)


async def reads_all(scope, receive, send) -> None:
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message["more_body"]
    await answers(200, "application/json", str(size).encode())(scope, receive, send)


def answers(status: int, kind: str, body: bytes) -> App:
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]})
        await send({"type": "http.response.body", "body": body})

    return app


async def dies(scope, receive, send) -> None:
    """As Serve's proxy does where the replica is gone: it returns without a word."""


async def fails(scope, receive, send) -> None:
    raise RuntimeError("/secret/path: a stack trace")


def test_a_body_within_its_bounds_passes() -> None:
    status, headers, body = asked(reads_all, b"ab", b"c", body_bytes=3)
    assert (status, body) == (200, b"3")
    assert len(headers["x-request-id"]) == 32


@pytest.mark.parametrize("headers", [{}, {"content-length": "4"}])
def test_a_body_that_is_too_large_is_refused_whether_or_not_it_says_so(headers: dict[str, str]) -> None:
    status, _, body = asked(reads_all, b"ab", b"cd", headers=headers, body_bytes=3)
    assert status == 413
    assert json.loads(body)["error"].startswith("A request may hold")


@pytest.mark.parametrize("length", ["-1", "1e9", "x"])
def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    assert asked(reads_all, headers={"content-length": length})[0] == 413


def test_what_all_requests_hold_together_is_bounded_and_let_go() -> None:
    async def together() -> list[int]:
        guard = Guard(reads_all, body_bytes=10, all_bytes=15)
        statuses = []

        async def one() -> None:
            messages = [b"x" * 10, b""]

            async def receive() -> dict:
                await asyncio.sleep(0.01)
                body = messages.pop(0)
                return {"type": "http.request", "body": body, "more_body": bool(messages)}

            async def send(message: dict) -> None:
                if "status" in message:
                    statuses.append(message["status"])

            await guard({"type": "http", "headers": [], "path": "/", "method": "POST"}, receive, send)

        await asyncio.gather(one(), one())
        await one()
        return statuses

    assert sorted(asyncio.run(together())) == [200, 200, 503]


@pytest.mark.parametrize(
    "app",
    [
        dies,
        answers(503, "text/plain", b"Request dropped"),
        answers(408, "text/plain", b"timed out"),
        answers(404, "text/plain", b"Path '/v1/federation' not found."),
    ],
)
def test_where_serve_has_no_answer_one_is_given_with_a_time_to_come_back(app: App) -> None:
    status, headers, body = asked(app)
    assert (status, headers["retry-after"], headers["content-type"]) == (503, "1", "application/json")
    assert json.loads(body) == {
        "request_id": headers["x-request-id"],
        "error": "The server is busy or a part of it is being started; try again.",
    }


@pytest.mark.parametrize("code", [404, 503])
def test_the_applications_own_refusals_pass_as_they_are(code: int) -> None:
    status, headers, body = asked(answers(code, "application/json", b'{"error": "mine"}'))
    assert (status, body) == (code, b'{"error": "mine"}')
    assert "retry-after" not in headers


def test_no_stack_trace_leaves_the_server() -> None:
    status, _, body = asked(fails)
    assert status == 500
    assert set(json.loads(body)) == {"request_id", "error"}
    assert b"secret" not in body


def test_headers_by_which_a_client_could_steer_serve_are_taken_off() -> None:
    seen: list[bytes] = []

    async def looks(scope, receive, send) -> None:
        seen.extend(name for name, _ in scope["headers"])
        await answers(200, "application/json", b"{}")(scope, receive, send)

    headers = {"x-request-timeout-seconds": "0", "Serve_Multiplexed_Model_Id": "x", "x-api-key": "k"}
    asked(looks, headers=headers)
    assert seen == [b"x-api-key", b"x-client-request-id"]


def test_a_clients_own_request_id_is_kept_where_it_fits_into_a_log() -> None:
    for name in ("x-request-id", "X-Request-Id"):
        assert asked(reads_all, headers={name.lower(): "study-7.scan_2"})[1]["x-request-id"] == "study-7.scan_2"
    for wrong in ("", "a b", "x" * 65, "\n", "é", "../etc"):
        assert asked(reads_all, headers={"x-request-id": wrong})[1]["x-request-id"] != wrong


def test_the_guard_behind_another_one_keeps_the_id_of_the_first() -> None:
    status, headers, _ = asked(Guard(reads_all), b"x", headers={"x-request-id": "mine"})
    assert (status, headers["x-request-id"]) == (200, "mine")


class Uploads:
    """Requests of several clients on one guard, each of which sends its body when it is told to."""

    def __init__(self, **bounds: float) -> None:
        self.guard = Guard(reads_all, **bounds)

    async def send(self, key: str, *bodies: bytes, stalls: bool = False) -> int:
        messages = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
        messages += [] if stalls else [{"type": "http.request", "body": b"", "more_body": False}]
        statuses: list[int] = []

        async def receive() -> dict:
            if not messages:
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            return messages.pop(0)

        async def answer(message: dict) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        headers = [(b"x-api-key", key.encode()), (b"transfer-encoding", b"chunked")]
        await self.guard({"type": "http", "headers": headers, "path": "/", "method": "POST"}, receive, answer)
        return statuses[0]


def test_an_upload_that_stalls_is_ended_and_gives_back_what_it_held() -> None:
    async def one_after_the_other() -> list[int]:
        uploads = Uploads(body_bytes=10, all_bytes=10, stall_s=0.05)
        return [await uploads.send("a", b"x" * 10, stalls=True), await uploads.send("b", b"y" * 10)]

    assert asyncio.run(one_after_the_other()) == [408, 200]


def test_uploads_of_one_key_that_stall_hold_up_nobody_else() -> None:
    async def together() -> tuple[list[int], list[int]]:
        uploads = Uploads(body_bytes=10, all_bytes=40, stall_s=0.5)
        stalled = [asyncio.create_task(uploads.send("a", b"x" * 4, stalls=True)) for _ in range(50)]
        await asyncio.sleep(0.1)
        others = [await uploads.send(key, b"y" * 10) for key in ("b", "c", "b")]
        return others, await asyncio.gather(*stalled)

    others, stalled = asyncio.run(together())
    assert others == [200, 200, 200]
    assert set(stalled) == {408, 503}
    assert stalled.count(408) == 5, "as many as half of all bytes allow"


def test_a_client_has_a_bounded_number_of_uploads_that_are_not_complete() -> None:
    async def together() -> tuple[int, list[int], int]:
        uploads = Uploads(stall_s=0.3)
        stalled = [asyncio.create_task(uploads.send("a", b"x", stalls=True)) for _ in range(40)]
        await asyncio.sleep(0.1)
        other = await uploads.send("b", b"y")
        answers = await asyncio.gather(*stalled)
        return other, answers, await uploads.send("a", b"x")

    other, stalled, again = asyncio.run(together())
    assert (other, again) == (200, 200)
    assert (stalled.count(408), stalled.count(503)) == (CLIENT_UPLOADS, 40 - CLIENT_UPLOADS)
