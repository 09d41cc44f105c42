from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedplatform.serving.audit import (
    Anchor,
    AuditEntry,
    AuditError,
    Broken,
    CertificateEntry,
    TornEntry,
    Verified,
    read_entry,
    verify,
)
from fedplatform.serving.audit_log import AuditLog

ENTRY = AuditEntry(
    request_id="r1",
    time="2026-11-24T23:40:00.123456+00:00",
    key_id="0a1b2c3d",
    hospital_id="hospital_0",
    input_sha256="a" * 64,
    scan=0,
    slice_number=None,
    model_version="3",
    model_digest="b" * 64,
    purifier_digest="c" * 64,
    threshold=1.7320508075688772,
    anomaly_score=0.1 + 0.2,
    parts={"reconstruction": -0.25, "tampering": 3.5},
    flagged=False,
    depth=0,
    votes=(),
    label=1,
    referral="low confidence",
    kind_score=0.5,
    confidence=0.6180339887498949,
    counter=0,
    noise_fingerprint="0123456789abcdef",
)
CERTIFICATE = CertificateEntry(
    request_id="r2",
    time="2026-11-24T23:41:00+00:00",
    key_id="0a1b2c3d",
    hospital_id="hospital_0",
    input_sha256="a" * 64,
    scan=0,
    slice_number=70,
    model_version="3",
    model_digest="b" * 64,
    purifier_digest="c" * 64,
    sigma=0.25,
    samples=1000,
    label=None,
    radius=0.0,
    confidence=0.999,
    seed=7,
)


def log_of(path: Path, count: int) -> Anchor:
    log = AuditLog(path)
    for number in range(count):
        log.append(replace(ENTRY, request_id=f"r{number}", votes=(0, 1, number)))
    log.close()
    return log.head


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Anchor]:
    """The bytes of a log of ten lines, and its head."""
    path = tmp_path_factory.mktemp("audit") / "audit.log"
    head = log_of(path, 10)
    return path.read_bytes(), head


def found(tmp_path: Path, data: bytes, anchor: Anchor | None = None) -> Verified | Broken:
    path = tmp_path / "changed.log"
    path.write_bytes(data)
    return verify(path, anchor=anchor)


def test_what_was_appended_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    strange = replace(ENTRY, threshold=float("inf"), request_id='"\n\u2028é', parts={}, votes=(0, 1))
    log = AuditLog(path)
    log.append(ENTRY, CERTIFICATE)
    log.append(strange)
    assert [read_entry(path, line) for line in (1, 2, 3)] == [ENTRY, CERTIFICATE, strange]
    assert verify(path) == Verified(log.head, ())
    assert verify(path, anchor=log.head) == Verified(log.head, ())


def test_every_line_is_json_that_other_tools_read_and_holds_the_hash_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log_of(path, 3)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["line"] for line in lines] == [1, 2, 3]
    assert [line["previous"] for line in lines] == ["0" * 64, lines[0]["sha256"], lines[1]["sha256"]]
    assert lines[0]["confidence"] == ENTRY.confidence


def test_a_log_that_is_opened_again_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    first = log_of(path, 4)
    last = log_of(path, 3)
    assert last.lines == 7
    assert verify(path, anchor=first) == verify(path, anchor=last) == Verified(last, ())


def test_only_its_owner_reads_the_log_and_only_one_process_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(AuditError, match="being written by another"):
        AuditLog(path)
    log.close()
    AuditLog(path).close()
    with pytest.raises(AuditError):
        log.append(ENTRY)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_byte_that_is_changed_is_found(tmp_path: Path, ten: tuple[bytes, Anchor], data: st.DataObject) -> None:
    whole, _ = ten
    place = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != whole[place]))
    broken = found(tmp_path, whole[:place] + bytes([value]) + whole[place + 1 :])
    assert isinstance(broken, Broken)
    assert broken.line == whole[:place].count(b"\n") + 1


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_bytes_that_are_added_or_taken_out_are_found(
    tmp_path: Path, ten: tuple[bytes, Anchor], data: st.DataObject
) -> None:
    whole, head = ten
    start, end = sorted((data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, len(whole)))))
    changed = whole[:start] + data.draw(st.binary(max_size=20)) + whole[end:]
    if changed != whole:
        assert isinstance(found(tmp_path, changed, head), Broken)


@given(st.permutations(range(10)))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_in_another_order_are_found(tmp_path: Path, ten: tuple[bytes, Anchor], order: list[int]) -> None:
    lines = ten[0].splitlines(keepends=True)
    answer = found(tmp_path, b"".join(lines[number] for number in order))
    first = next((place for place, number in enumerate(order) if place != number), None)
    assert answer == Verified(ten[1], ()) if first is None else isinstance(answer, Broken) and answer.line == first + 1


def test_every_line_that_is_taken_out_or_doubled_is_found(tmp_path: Path, ten: tuple[bytes, Anchor]) -> None:
    lines = ten[0].splitlines(keepends=True)
    for number in range(10):
        without = found(tmp_path, b"".join(lines[:number] + lines[number + 1 :]), ten[1])
        doubled = found(tmp_path, b"".join(lines[: number + 1] + lines[number:]), ten[1])
        assert isinstance(without, Broken)
        assert isinstance(doubled, Broken)
        assert (without.line, doubled.line) == (number + 1, number + 2)


def test_a_cut_end_is_a_shorter_log_and_is_found_by_its_anchor(tmp_path: Path, ten: tuple[bytes, Anchor]) -> None:
    whole, head = ten
    shorter = b"".join(whole.splitlines(keepends=True)[:6])
    assert isinstance(found(tmp_path, shorter), Verified)
    assert found(tmp_path, shorter, head) == Broken(7, "is missing: the anchor was taken of 10 lines")
    assert isinstance(found(tmp_path, b"", head), Broken)


def test_a_log_that_was_written_anew_is_found_by_its_anchor(tmp_path: Path, ten: tuple[bytes, Anchor]) -> None:
    forged = tmp_path / "forged.log"
    log = AuditLog(forged)
    for _ in range(12):
        log.append(replace(ENTRY, referral=None))
    log.close()
    assert isinstance(verify(forged), Verified), "whoever can write the file can write a chain"
    assert verify(forged, anchor=ten[1]) == Broken(10, "is not the line that the anchor was taken of")


def test_an_anchor_is_text_and_back() -> None:
    anchor = Anchor(12, "0a" * 32)
    assert Anchor.parse(f"{anchor}\n") == anchor
    for text in ("", "12", "12:", "x:" + "0" * 64, "-1:" + "0" * 64, "1:" + "g" * 64, "²:" + "0" * 64):
        with pytest.raises(AuditError, match="LINES:SHA256"):
            Anchor.parse(text)


@given(st.binary(max_size=300))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_holds_is_verified_or_broken(tmp_path: Path, data: bytes) -> None:
    answer = found(tmp_path, data)
    assert isinstance(answer, Broken) == bool(data)


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_a_line_that_was_cut_short_is_set_aside_and_said(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "audit.log"
    log_of(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    torn = lines[2][:kept]
    path.write_bytes(b"".join(lines[:2]) + torn)
    assert isinstance(verify(path), Broken) == bool(torn)
    log = AuditLog(path)
    log.append(ENTRY)
    answer = verify(path, anchor=log.head)
    if not torn:
        assert answer == Verified(log.head, ())
        return
    assert answer == Verified(log.head, (3,))
    entry = read_entry(path, 3)
    assert isinstance(entry, TornEntry)
    assert entry.length == len(torn)
    assert path.with_name(entry.set_aside).read_bytes() == torn
    assert read_entry(path, 4) == ENTRY


def test_a_file_that_is_no_audit_log_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("buy milk\n")
    with pytest.raises(AuditError, match="last line"):
        AuditLog(path)
    assert path.read_text() == "buy milk\n"


def forged(number: int, previous: str, **values: object) -> tuple[bytes, str]:
    """A line as the format has it, whoever wrote it: the hash is of all that stands before it."""
    start = json.dumps({"line": number, "previous": previous, **values}, separators=(",", ":")).encode()[:-1]
    sha256 = hashlib.sha256(start).hexdigest()
    return start + b',"sha256":"' + sha256.encode() + b'"}\n', sha256


def test_a_line_is_what_its_format_says(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path)
    log.append(ENTRY, CERTIFICATE)
    entries = [{"kind": "diagnosis", **vars(ENTRY)}, {"kind": "certificate", **vars(CERTIFICATE)}]
    first, sha256 = forged(1, "0" * 64, **entries[0])
    second, last = forged(2, sha256, **entries[1])
    assert path.read_bytes() == first + second
    assert log.head == Anchor(2, last)
    assert str(log.head) == f"2:{last}"


def test_a_line_with_a_right_hash_in_a_wrong_place_is_found(tmp_path: Path) -> None:
    first, sha256 = forged(1, "0" * 64, kind="diagnosis")
    second, last = forged(2, sha256, kind="diagnosis")
    assert found(tmp_path, first + second) == Verified(Anchor(2, last), ())
    assert found(tmp_path, second) == Broken(1, "was written as line 2")
    assert found(tmp_path, first + forged(2, "1" * 64)[0]) == Broken(2, "does not follow from the line before")
    assert found(tmp_path, forged(1, "1" * 64)[0]) == Broken(1, "does not follow from the line before")
    assert found(tmp_path, first + second[:-1]) == Broken(
        2, "is cut short; whoever opens the log for writing sets it aside"
    )
    assert found(tmp_path, first + forged(2, sha256, kind="continued")[0]) == Broken(
        2, "says that a log is continued, which only a first line does"
    )
    assert found(tmp_path, forged(1, "0" * 64, kind="continued", lines_before=3)[0]) == Broken(
        1, "does not say which log it continues"
    )
    assert found(tmp_path, first + forged(2, sha256, kind="torn")[0] + b"\n") == Broken(
        3, "was changed: its hash is another"
    )
    for start in (b'{"line":1', b'{"line":"x","previous":""', b"[1", b"", b'{"line":' + b"[" * 100_000):
        line = start + b',"sha256":"' + hashlib.sha256(start).hexdigest().encode() + b'"}\n'
        assert found(tmp_path, line) == Broken(1, "is no line of an audit log")


def test_an_anchor_holds_for_its_own_line_alone(tmp_path: Path, ten: tuple[bytes, Anchor]) -> None:
    whole, head = ten
    hashes = [json.loads(line)["sha256"] for line in whole.splitlines()]
    for number in (1, 5, 10):
        assert found(tmp_path, whole, Anchor(number, hashes[number - 1])) == Verified(head, ())
        wrong = Anchor(number, hashes[number - 2])
        assert found(tmp_path, whole, wrong) == Broken(number, "is not the line that the anchor was taken of")
    assert found(tmp_path, whole, Anchor(0, "0" * 64)) == Verified(head, ())
    assert found(tmp_path, whole, Anchor(11, "0" * 64)) == Broken(11, "is missing: the anchor was taken of 11 lines")


def test_what_cannot_be_read_as_an_entry_says_which_line_it_is(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    line, _ = forged(1, "0" * 64, kind="diagnosis", **vars(ENTRY))
    strange = forged(2, "0" * 64, kind="opinion")[0]
    short = forged(3, "0" * 64, kind="torn", length=1)[0]
    wrong = forged(4, "0" * 64, kind="torn", length="long", set_aside="x")[0]
    path.write_bytes(line + strange + short + wrong + b"changed\n")
    assert read_entry(path, 1) == ENTRY
    for number, says in (
        (0, "has no line 0"),
        (2, "line 2 is of a kind that is not known here: 'opinion'"),
        (3, "line 3 lacks a field, or has a wrong one"),
        (4, "line 4 lacks a field, or has a wrong one"),
        (5, "line 5 of .* was changed"),
        (6, "has no line 6"),
    ):
        with pytest.raises(AuditError, match=says):
            read_entry(path, number)
    for use in (lambda: verify(tmp_path / "none.log"), lambda: read_entry(tmp_path / "none.log", 1)):
        with pytest.raises(AuditError, match=r"none\.log cannot be read: No such file"):
            use()


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_json_has_no_number_for_is_a_word(tmp_path: Path, value: float) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path)
    log.append(replace(ENTRY, threshold=value, parts={"reconstruction": value}))
    line = json.loads(path.read_text())
    assert (line["threshold"], line["parts"]) == (str(value), {"reconstruction": str(value)})
    entry = read_entry(path, 1)
    assert isinstance(entry, AuditEntry)
    assert str(entry.threshold) == str(entry.parts["reconstruction"]) == str(value)


def test_a_line_has_at_most_a_mebibyte_and_the_log_goes_on_behind_such_lines(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path)
    log.append(replace(ENTRY, request_id=""))
    room = 2**20 - path.stat().st_size
    filling = replace(ENTRY, request_id="x" * room)
    log.append(filling)
    assert path.stat().st_size == 2 * 2**20 - room
    with pytest.raises(AuditError, match="at most 1,048,576 bytes, got 1,048,577"):
        log.append(ENTRY, replace(ENTRY, request_id="x" * (room + 1)))
    assert log.head.lines == 2, "none of them is written"
    assert log.append(filling, filling).lines == 4
    log.close()
    again = AuditLog(path)
    assert again.head == log.head
    assert again.append(ENTRY).lines == 5
    assert isinstance(verify(path, anchor=again.head), Verified)


def test_a_long_file_without_a_line_is_no_log_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "volume.bin"
    path.write_bytes(bytes(2 * 2**20 + 1))
    with pytest.raises(AuditError, match="is no audit log"):
        AuditLog(path)
    assert path.read_bytes() == bytes(2 * 2**20 + 1)
    path.write_bytes(bytes(2 * 2**20))
    log = AuditLog(path)
    assert log.head.lines == 1, "as long as a line that was cut short can be, it is set aside"
    assert [left.stat().st_mode & 0o777 for left in tmp_path.glob("volume.bin.torn-*")] == [0o600]


def test_a_disk_that_is_full_leaves_whole_lines_alone(tmp_path: Path) -> None:
    code = f"""
import resource, signal, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from pathlib import Path
from test_serving_audit import ENTRY
from fedplatform.serving.audit import AuditError
from fedplatform.serving.audit_log import AuditLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = AuditLog(Path({str(tmp_path / "audit.log")!r}))
log.append(ENTRY)
size = Path({str(tmp_path / "audit.log")!r}).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size * 3 // 2, resource.RLIM_INFINITY))
try:
    log.append(ENTRY)
except AuditError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(log.append(ENTRY).lines)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    complaint, lines = done.stdout.splitlines()
    assert "cannot be written" in complaint
    assert lines == "2"
    assert isinstance(verify(tmp_path / "audit.log"), Verified)


WRITER = """
import os, sys, time
sys.path[:0] = [sys.argv[2]]
from pathlib import Path
from test_serving_audit import ENTRY
from fedplatform.serving.audit_log import AuditLog

write = os.write
def in_pieces(file, data):
    time.sleep(0.0005)  # a slow disk: the process can die between any two pieces of a line
    return write(file, bytes(data[:30]))
os.write = in_pieces
log = AuditLog(Path(sys.argv[1]))
while True:
    print(log.append(ENTRY).lines, flush=True)
"""


def test_a_writer_killed_in_the_middle_of_a_line_loses_no_line_that_it_had_promised(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    torn = 0
    for wait in (0.0, 0.01, 0.02, 0.03, 0.05):
        command = [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            promised = int(writer.stdout.readline())
            time.sleep(wait)
            writer.send_signal(signal.SIGKILL)
            promised = max([promised, *map(int, writer.stdout.read().splitlines())])
        left = path.read_bytes()
        torn += not left.endswith(b"\n")
        assert left.count(b"\n") >= promised
        assert isinstance(verify(path), Verified) == left.endswith(b"\n")
        log = AuditLog(path)
        log.append(ENTRY)
        log.close()
        answer = verify(path, anchor=log.head)
        assert isinstance(answer, Verified), answer
        assert len(answer.torn) == torn
        assert len(list(tmp_path.glob("audit.log.torn-*"))) == torn
    assert torn, "no writer was killed in the middle of a line, so this shows nothing"
