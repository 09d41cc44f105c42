"""The one writer of an audit log. A log that is rotated, or changed under it, goes on in a new file chained to it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

from fedplatform.core.files import sync_folder
from fedplatform.core.private_files import OwnedFileError, write_owned
from fedplatform.serving.audit import (
    GENESIS,
    LONGEST_LINE,
    Anchor,
    AuditEntry,
    AuditError,
    Broken,
    CertificateEntry,
    ContinuedEntry,
    Entry,
    TornEntry,
    line_of,
    read_line,
    verify,
    whole_lines,
)


class LogInUseError(AuditError):
    """Another process writes to the log."""


class BrokenLogError(AuditError):
    """The file does not end as a log of this kind does; :func:`rotate` sets it aside."""


class AuditLog:
    """The one writer of a log. Opening it sets a line aside that a crash cut short, and writes down that it did.

    Raises :class:`LogInUseError` where another process writes to it, and :class:`BrokenLogError` where its last line is
    not one of such a log. It is not read from its beginning: that is for :func:`~fedplatform.serving.audit.verify`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changing = threading.Lock()
        self._file = _opened(path)
        try:
            self._size = os.fstat(self._file).st_size
            self._head = Anchor(0, GENESIS)
            self._find_head()
        except BaseException:
            os.close(self._file)
            raise

    @property
    def head(self) -> Anchor:
        """The present end of the log."""
        return self._head

    def append(self, *entries: AuditEntry | CertificateEntry) -> Anchor:
        """Write entries, a line each; on return they are on the disk. Raises :class:`AuditError` and writes none.

        A log that was moved away, cut or written to by somebody else is continued in a new file first.
        """
        with self._changing:
            self._go_on_where_changed()
            return self._append(*entries)

    def check(self) -> Anchor:
        """The present end of the log, continued where it was changed; raises :class:`AuditError` where it cannot be."""
        with self._changing:
            self._go_on_where_changed()
            return self._head

    def close(self) -> None:
        """Let another process write."""
        os.close(self._file)
        self._file = -1

    def _go_on_where_changed(self) -> None:
        if self._file < 0:
            raise AuditError(f"{self._path} was closed")
        what = self._change()
        if what:
            self._continue_elsewhere(what)

    def _change(self) -> str:
        """What somebody else did to the file since the last line; "" where nobody did."""
        here = os.fstat(self._file)
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return "it was moved away"
        except OSError as error:
            raise AuditError(f"{self._path} cannot be read: {error.strerror}") from error
        if (there.st_ino, there.st_dev) != (here.st_ino, here.st_dev):
            return "another file lies in its place"
        if here.st_size < self._size:
            return f"it was cut from {self._size:,} to {here.st_size:,} bytes"
        if here.st_size > self._size:
            return "somebody else wrote to it"
        return ""

    def _continue_elsewhere(self, what: str) -> None:
        """Go on in a fresh file. On an error all is as before, and the next try may succeed."""
        before = (self._file, self._size, self._head)
        aside = _set_aside(self._path, unless_written_by=self._file)
        try:
            self._file = _opened(self._path, unless_it_is=before[0])
            self._size, self._head = os.fstat(self._file).st_size, Anchor(0, GENESIS)
            was = before[2]
            self._append(continuing(was, reason=what, set_aside=aside))
        except BaseException:
            if self._file not in (before[0], -1):
                os.close(self._file)
            self._file, self._size, self._head = before
            raise
        if self._file != before[0]:
            os.close(before[0])

    def _append(self, *entries: Entry) -> Anchor:
        head, lines = self._head, []
        for entry in entries:
            line, head = line_of(entry, head)
            lines.append(line)
        data = b"".join(lines)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise AuditError(f"{self._path} cannot be written: {error.strerror}") from error
        self._size += len(data)
        self._head = head
        return head

    def _find_head(self) -> None:
        """Read the last whole line, and set aside what stands behind it."""
        start = max(0, self._size - 2 * LONGEST_LINE)
        end = os.pread(self._file, self._size - start, start)
        whole, newline, torn = end.rpartition(b"\n")
        last = whole.rpartition(b"\n")[2]
        if newline:
            read = read_line(last)
            if isinstance(read, str):
                raise BrokenLogError(
                    f"the last line of {self._path} {read}; 'fedplatform audit verify' says more, 'fedplatform audit "
                    "rotate' sets the log aside and begins a new one"
                )
            self._head = Anchor(read.number, read.sha256)
        elif start:
            raise BrokenLogError(f"{self._path} is no audit log")
        if torn:
            name = f"{self._path.name}.torn-{hashlib.sha256(torn).hexdigest()[:16]}"
            try:
                write_owned(self._path.with_name(name), torn)
                os.ftruncate(self._file, self._size - len(torn))
            except (OSError, OwnedFileError) as error:
                raise AuditError(f"a torn line of {self._path} cannot be set aside: {error}") from error
            self._size -= len(torn)
            self._append(TornEntry(length=len(torn), set_aside=name))


def rotate(path: Path, *, to: Path | None = None, reason: str = "it was rotated") -> Path:
    """Set a log aside and begin a new one that continues it; returns where the old one lies.

    ``to`` is its new name; by default the time stands in it. A log that is broken is continued from its last line that
    is whole. While a server writes to the log it is only moved: the server begins the new one. Raises
    :class:`AuditError` where there is no log, or something lies at ``to`` already.
    """
    target = to or path.with_name(f"{path.stem}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}{path.suffix}")
    if target.exists():
        raise AuditError(f"{target} exists already")
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise AuditError(f"{path} cannot be read: {error.strerror}") from error
    try:
        is_served = not _locked(file)
        end = Anchor(0, GENESIS) if is_served else _last_whole(path)
        try:
            path.rename(target)
            sync_folder(path.parent)
        except OSError as error:
            raise AuditError(f"{path} cannot be moved to {target}: {error.strerror}") from error
        if not is_served:
            log = AuditLog(path)
            try:
                log._append(continuing(end, reason=reason, set_aside=target.name))
            finally:
                log.close()
    finally:
        os.close(file)
    return target


def continuing(before: Anchor, *, reason: str, set_aside: str) -> ContinuedEntry:
    """The first line of a log that goes on where ``before`` is the end of another."""
    return ContinuedEntry(lines_before=before.lines, sha256_before=before.sha256, reason=reason, set_aside=set_aside)


def _set_aside(path: Path, *, unless_written_by: int) -> str:
    """Give what lies at ``path`` another name, and return that; "" where nothing lies there, or an empty file.

    Raises :class:`LogInUseError` where it is another file than ``unless_written_by`` and another process writes to it.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise AuditError(f"{path} cannot be read: {error.strerror}") from error
    try:
        found, ours = os.fstat(file), os.fstat(unless_written_by)
        if (found.st_ino, found.st_dev) != (ours.st_ino, ours.st_dev) and not _locked(file):
            raise LogInUseError(f"{path} is being written by another process")
        if found.st_size == 0:
            return ""
        name = f"{path.stem}-changed-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}{path.suffix}"
        path.rename(path.with_name(name))
        return name
    except OSError as error:
        raise AuditError(f"{path} cannot be set aside: {error.strerror}") from error
    finally:
        os.close(file)


def _opened(path: Path, *, unless_it_is: int = -1) -> int:
    """The file, made if missing, with the lock of its one writer; the file that is given where it is that one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise AuditError(f"{path} cannot be opened: {error.strerror}") from error
    if unless_it_is >= 0 and os.path.sameopenfile(file, unless_it_is):
        os.close(file)
        return unless_it_is
    if not _locked(file):
        os.close(file)
        raise LogInUseError(f"{path} is being written by another process")
    try:
        sync_folder(path.parent)
    except OSError as error:
        os.close(file)
        raise AuditError(f"{path} cannot be opened: {error.strerror}") from error
    return file


def _locked(file: int) -> bool:
    """Whether this process has the writer's lock now; it goes with the file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _last_whole(path: Path) -> Anchor:
    found = verify(path)
    return whole_lines(path, found.line - 1) if isinstance(found, Broken) else found.head
