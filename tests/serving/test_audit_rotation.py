"""A log that is rotated, cut or changed under its writer goes on in a new file, chained to the end of the old one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_serving_audit import ENTRY, log_of

from fedplatform.serving.audit import (
    Anchor,
    AuditEntry,
    AuditError,
    Broken,
    ContinuedEntry,
    Verified,
    read_entry,
    verify,
)
from fedplatform.serving.audit_log import AuditLog, BrokenLogError, LogInUseError, rotate


def move(path: Path) -> None:
    path.rename(path.with_name(f"moved-{len(list(path.parent.iterdir()))}.jsonl"))


def move_and_create(path: Path) -> None:
    move(path)
    path.touch()


def copy_and_truncate(path: Path) -> None:
    shutil.copyfile(path, path.with_name(f"copy-{len(list(path.parent.iterdir()))}.jsonl"))
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def add_a_byte(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def add_a_line(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"buy milk\n")


def put_a_copy_in_its_place(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    copy.rename(path)


CHANGES: dict[Callable[[Path], None], str] = {
    move: "it was moved away",
    move_and_create: "another file lies in its place",
    copy_and_truncate: "it was cut from",
    cut: "it was cut from",
    add_a_byte: "somebody else wrote to it",
    add_a_line: "somebody else wrote to it",
    put_a_copy_in_its_place: "another file lies in its place",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_log_that_somebody_changes_goes_on_in_a_new_file_that_names_the_end_of_the_old(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    before = log.append(ENTRY, ENTRY)
    change(path)
    assert log.append(replace(ENTRY, request_id="after")).lines == 2
    assert verify(path, anchor=log.head) == Verified(log.head, (), before)
    first, second = read_entry(path, 1), read_entry(path, 2)
    assert isinstance(first, ContinuedEntry)
    assert isinstance(second, AuditEntry)
    assert first.reason.startswith(CHANGES[change])
    assert second.request_id == "after"
    if first.set_aside:
        assert (tmp_path / first.set_aside).stat().st_size > 0
    assert log.append(ENTRY).lines == 3, "and from here on as ever"
    log.close()
    assert AuditLog(path).head == log.head


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from([None, *CHANGES]), max_size=12))
def test_whatever_is_done_to_a_log_each_file_continues_one_that_was_promised(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Callable[[Path], None] | None]
) -> None:
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    log = AuditLog(path)
    log.append(ENTRY)
    promised: list[Anchor] = [log.head]
    for step in steps:
        if step is not None:
            step(path)
        log.append(ENTRY)
        answer = verify(path, anchor=log.head)
        assert isinstance(answer, Verified)
        if step is not None:
            assert answer.before == promised[-1]
        promised.append(log.head)
    log.close()


def test_a_check_continues_a_log_that_nobody_writes_to_at_the_moment(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    before = log.append(ENTRY)
    move(path)
    assert log.check().lines == 1
    assert log.check().lines == 1
    assert verify(path) == Verified(log.head, (), before)


def test_a_place_that_another_process_writes_to_is_not_taken_from_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    before = log.append(ENTRY)
    path.rename(tmp_path / "away.jsonl")
    other = AuditLog(path)
    other.append(ENTRY)
    for use in (log.check, lambda: log.append(ENTRY)):
        with pytest.raises(LogInUseError, match="written by another process"):
            use()
    assert log.head == before
    other.close()
    log.append(ENTRY)
    assert verify(path) == Verified(log.head, (), before)


def test_where_no_new_file_can_be_made_nothing_is_written_and_the_next_try_succeeds(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    path = folder / "audit.jsonl"
    log = AuditLog(path)
    before = log.append(ENTRY)
    folder.rename(tmp_path / "elsewhere")
    folder.write_text("a file in the way")
    for _ in range(2):
        with pytest.raises(AuditError, match="cannot be"):
            log.append(ENTRY)
    assert log.head == before
    folder.unlink()
    log.append(ENTRY)
    assert verify(path) == Verified(log.head, (), before)


def test_rotate_sets_a_log_aside_and_begins_one_that_continues_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    end = log_of(path, 3)
    old = rotate(path)
    assert verify(old, anchor=end) == Verified(end, ())
    new = verify(path)
    assert isinstance(new, Verified)
    assert new.before == end
    named = rotate(path, to=tmp_path / "november.jsonl")
    assert named == tmp_path / "november.jsonl"
    with pytest.raises(AuditError, match="exists already"):
        rotate(path, to=named)
    with pytest.raises(AuditError, match="cannot be read"):
        rotate(tmp_path / "none.jsonl")


def test_rotate_continues_a_broken_log_from_its_last_line_that_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    end = log_of(path, 3)
    add_a_line(path)
    with pytest.raises(BrokenLogError, match="audit rotate"):
        AuditLog(path)
    old = rotate(path)
    assert isinstance(verify(old), Broken)
    new = verify(path)
    assert isinstance(new, Verified)
    assert new.before == end


def test_rotate_leaves_the_new_log_to_a_server_that_writes(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    before = log.append(ENTRY)
    old = rotate(path)
    assert not path.exists()
    log.append(ENTRY)
    assert verify(old, anchor=before) == Verified(before, ())
    assert verify(path) == Verified(log.head, (), before)
