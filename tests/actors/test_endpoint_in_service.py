"""What happens to a server that runs for months: its log is rotated, its keys change, uploads stall, clients differ."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from endpoint_process import Endpoint, traffic
from hostile_uploads import picture_bytes, scan_pixels

from fedplatform.serving.api_keys import Keys
from fedplatform.serving.audit import Verified, verify
from fedplatform.serving.audit_log import rotate

SCAN = picture_bytes(scan_pixels(), "PNG")
BROKEN = SCAN[: len(SCAN) // 2]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_right(answers: list[requests.Response], expected: dict) -> None:
    """Every answer is the right one, or a 503 that says when to come back; some are right."""
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert any(answer.status_code == 200 for answer in answers)
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
        else:
            (one,) = answer.json()["answers"]
            assert one["label"] == expected["label"]
            assert one["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-4)


def move(log: Path) -> None:
    log.rename(log.with_name("rotated.jsonl"))


def move_and_create(log: Path) -> None:
    log.rename(log.with_name("rotated.jsonl"))
    log.touch(mode=0o600)


def copy_and_truncate(log: Path) -> None:
    shutil.copyfile(log, log.with_name("rotated.jsonl"))
    with log.open("r+b") as file:
        file.truncate()


def add_a_byte(log: Path) -> None:
    with log.open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize("change", [rotate, move, move_and_create, copy_and_truncate, add_a_byte])
def test_a_log_that_is_rotated_or_changed_loses_no_answer_and_goes_on_chained(
    endpoint: Endpoint, change: Callable[[Path], object]
) -> None:
    log = endpoint.run / "serving" / "audit.jsonl"
    (expected,) = endpoint.diagnose(SCAN).json()["answers"]
    with traffic(endpoint, SCAN) as answers:
        wait_for(lambda: len(answers) > 4)
        change(log)
        told = len(answers)
        wait_for(lambda: len([one for one in answers[told:] if one.status_code == 200]) > 4)
    assert_right(answers, expected)
    assert requests.get(f"{endpoint.url}/readyz", timeout=60).status_code == 200
    found = verify(log)
    assert isinstance(found, Verified)
    assert found.before is not None
    assert found.before.lines > 0
    ids = {json.loads(line).get("request_id") for file in log.parent.glob("*.jsonl") for line in whole_lines(file)}
    assert {one.json()["request_id"] for one in answers if one.status_code == 200} <= ids


def whole_lines(log: Path) -> list[bytes]:
    return [line for line in log.read_bytes().splitlines(keepends=True) if line.endswith(b"}\n")]


def test_a_log_that_nobody_asks_for_is_continued_by_the_next_health_check(endpoint: Endpoint) -> None:
    endpoint.diagnose(SCAN)
    log = endpoint.run / "serving" / "audit.jsonl"
    log.rename(log.with_name("moved.jsonl"))
    wait_for(log.exists)
    assert isinstance(verify(log), Verified)


def test_a_log_that_cannot_be_made_stops_answers_until_it_can(endpoint: Endpoint) -> None:
    folder = endpoint.run / "serving"
    aside = folder.with_name("serving-aside")
    (expected,) = endpoint.diagnose(SCAN).json()["answers"]
    with traffic(endpoint, SCAN) as answers:
        folder.rename(aside)
        folder.write_text("in the way")
        wait_for(lambda: answers[-1:] != [] and answers[-1].status_code == 503)
        assert requests.get(f"{endpoint.url}/readyz", timeout=60).status_code == 503
        folder.unlink()
        aside.rename(folder)
        wait_for(lambda: answers[-1].status_code == 200)
    assert_right(answers, expected)


@pytest.mark.parametrize("fault", ["", "[", '[{"key_id": "a", "hospital": "typo"}]', None])
def test_keys_that_cannot_be_read_let_nobody_in_and_come_back(endpoint: Endpoint, fault: str | None) -> None:
    path = endpoint.keys_file
    before = path.read_text()
    try:
        if fault is None:
            path.chmod(0o644)
        else:
            path.write_text(fault)
        refused = endpoint.diagnose(SCAN)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"] == "The server cannot read its API keys at the moment; try again."
    finally:
        path.write_text(before)
        path.chmod(0o600)
    assert endpoint.diagnose(SCAN).status_code == 200


def test_a_key_of_a_hospital_without_a_model_is_told_so(endpoint: Endpoint) -> None:
    secret = Keys.load(endpoint.keys_file).add("hospital-typo")
    refused = requests.post(
        f"{endpoint.url}/v1/diagnose", headers={"X-API-Key": secret}, files={"scan": SCAN}, timeout=60
    )
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"].startswith("The hospital of this key has no model on this server")


def test_uploads_of_one_key_that_stall_hold_up_nobody_else(endpoint: Endpoint) -> None:
    host, port = endpoint.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/diagnose HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {endpoint.keys['hospital-00']}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n--b\r\n"
    ).encode()
    (expected,) = endpoint.diagnose(SCAN).json()["answers"]
    with ExitStack() as open_sockets:
        for _ in range(150):
            stalled = open_sockets.enter_context(socket.create_connection((host, int(port))))
            stalled.sendall(head)
        answers = [endpoint.diagnose(SCAN) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    assert_right(answers, expected)


def multipart(*parts: tuple[str, str | None, bytes], closed: bool = True) -> bytes:
    body = b""
    for name, filename, data in parts:
        ending = f'; filename="{filename}"' if filename is not None else ""
        body += f'--b\r\nContent-Disposition: form-data; name="{name}"{ending}\r\n\r\n'.encode() + data + b"\r\n"
    return body + (b"--b--\r\n" if closed else b"")


FORM = "multipart/form-data; boundary=b"
FAULTS = {
    "no form": ("application/json", b"{}", 415, '"application/json"'),
    "no type": (None, SCAN, 415, "says no Content-Type"),
    "no boundary": ("multipart/form-data", b"", 400, "names no boundary"),
    "nothing": (FORM, multipart(), 422, "holds no file"),
    "wrong part": (FORM, multipart(("image", "a.png", SCAN)), 422, 'The file "a.png" is in the part "image"'),
    "text": (FORM, multipart(("scan", None, b"a.png")), 422, 'The part "scan" is a text field; a file is sent with a'),
    "parameter": (FORM, multipart(("hospital", None, b"x")), 422, 'The part "hospital" is a text field; parameters'),
    "cut": (FORM, multipart(("scan", "a.png", SCAN), closed=False), 400, "closing boundary, is missing"),
    "too many": (FORM, multipart(*[("scan", "a.png", SCAN)] * 600), 413, "files at most"),
    "unnamed": (FORM, b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n--b--\r\n", 400, "has no name"),
    "one empty": (
        FORM,
        multipart(("scan", "a.png", SCAN), ("scan", "b.png", b"")),
        400,
        '"b.png": The upload is empty',
    ),
    "one broken": (FORM, multipart(("scan", "a.png", SCAN), ("scan", "b\n.png", BROKEN)), 400, ".png"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_multipart_body_has_its_own_sentence(endpoint: Endpoint, fault: str) -> None:
    kind, body, status, says = FAULTS[fault]
    headers = {**endpoint.headers(), **({"Content-Type": kind} if kind else {})}
    answer = requests.post(f"{endpoint.url}/v1/diagnose", data=body, headers=headers, timeout=60)
    assert (answer.status_code, says in answer.json()["error"]) == (status, True), answer.text


def test_a_request_keeps_the_id_that_its_client_gave_it_down_to_the_log(endpoint: Endpoint) -> None:
    answer = requests.post(
        f"{endpoint.url}/v1/diagnose",
        headers={**endpoint.headers(), "X-Request-Id": "study-17.scan-3"},
        files={"scan": SCAN},
        timeout=60,
    )
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "study-17.scan-3"
    log = endpoint.run / "serving" / "audit.jsonl"
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["request_id"] == "study-17.scan-3"
    assert re.fullmatch("[0-9a-f]{16}", last["noise_fingerprint"])


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/docs"])
def test_head_answers_as_get_without_a_body(endpoint: Endpoint, path: str) -> None:
    got, headed = (ask(f"{endpoint.url}{path}", timeout=60) for ask in (requests.get, requests.head))
    assert (headed.status_code, headed.content) == (got.status_code, b"")
    assert headed.headers["content-type"] == got.headers["content-type"]


def test_a_reverse_proxy_may_leave_its_prefix_on_or_take_it_off(endpoint: Endpoint) -> None:
    for prefix in ("", "/scan"):
        assert requests.get(f"{endpoint.url}{prefix}/readyz", timeout=60).json()["state"] == "ready"
        page = requests.get(f"{endpoint.url}{prefix}/", timeout=60).text
        assert 'data-root="/scan"' in page
        assert 'href="/scan/docs"' in page
        assert "/scan/openapi.json" in requests.get(f"{endpoint.url}{prefix}/docs", timeout=60).text
        files = {"scan": SCAN}
        answer = requests.post(
            f"{endpoint.url}{prefix}/v1/diagnose", headers=endpoint.headers(), files=files, timeout=60
        )
        assert answer.status_code == 200


def test_a_page_of_an_allowed_origin_may_ask_and_another_may_not(endpoint: Endpoint) -> None:
    for origin, allowed in (("https://pacs.example", "https://pacs.example"), ("https://other.example", None)):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        headers["Access-Control-Request-Headers"] = "x-api-key"
        asked = requests.options(f"{endpoint.url}/v1/diagnose", headers=headers, timeout=60)
        assert asked.headers.get("access-control-allow-origin") == allowed
        assert (asked.status_code == 200) is (allowed is not None)
        answer = requests.get(f"{endpoint.url}/readyz", headers={"Origin": origin}, timeout=60)
        assert answer.headers.get("access-control-allow-origin") == allowed
