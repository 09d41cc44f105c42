"""The audit log: what was answered to whom, in lines that each carry the hash of the one before."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedplatform.core.errors import FedplatformError
from fedplatform.core.files import sync_folder
from fedplatform.core.private_files import OwnedFileError, write_owned

GENESIS = "0" * 64  # stands for the line before the first
HASH = b',"sha256":"'  # a line ends with it, 64 hexadecimal digits of the hash of all that stands before, and '"}'
TAIL = len(HASH) + 64 + 2
LONGEST_LINE = 2**20


class AuditError(FedplatformError, ValueError):
    """The log cannot be opened, read or written; the message is one line for the person who keeps it."""


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One scan's diagnosis, as far as an auditor needs it to repeat it; never a pixel, never a secret.

    ``time`` is ISO 8601 in UTC. ``input_sha256`` is of the upload's bytes; ``scan`` counts the scans in it from 0 and
    ``slice_number`` is that of a volume's slice. ``counter`` is that of KeyedNoise.
    """

    request_id: str
    time: str
    key_id: str
    hospital_id: str
    input_sha256: str
    scan: int
    slice_number: int | None
    model_version: str
    model_digest: str
    purifier_digest: str
    threshold: float
    anomaly_score: float
    parts: Mapping[str, float]
    flagged: bool
    depth: int
    votes: tuple[int, ...]
    label: int
    referred: bool
    confidence: float
    counter: int


@dataclass(frozen=True, kw_only=True)
class CertificateEntry:
    """One certified answer. ``label`` is None where it abstained; ``seed`` is that of the noisy copies."""

    request_id: str
    time: str
    key_id: str
    hospital_id: str
    input_sha256: str
    scan: int
    slice_number: int | None
    model_version: str
    model_digest: str
    purifier_digest: str
    sigma: float
    samples: int
    label: int | None
    radius: float
    confidence: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class TornEntry:
    """A line that a crash cut short: its ``length`` bytes lie in the file ``set_aside`` beside the log."""

    length: int
    set_aside: str


Entry = AuditEntry | CertificateEntry | TornEntry
KINDS: Mapping[str, type[Entry]] = {"diagnosis": AuditEntry, "certificate": CertificateEntry, "torn": TornEntry}
NAMES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True)
class Anchor:
    """The end of the log at some time: how many lines, and the hash of the last. Kept elsewhere, it shows a cut.

    Its text is ``LINES:SHA256``.
    """

    lines: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.lines}:{self.sha256}"

    @staticmethod
    def parse(text: str) -> Anchor:
        """From its text; raises :class:`AuditError`."""
        lines, _, sha256 = text.strip().partition(":")
        if not (lines.isascii() and lines.isdigit() and len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")):
            raise AuditError(f"an anchor is LINES:SHA256, got {text!r}")
        return Anchor(int(lines), sha256)


@dataclass(frozen=True)
class Verified:
    """Every line is whole and follows from the one before. ``torn`` are the lines that say that a crash cut one."""

    head: Anchor
    torn: tuple[int, ...]


@dataclass(frozen=True)
class Broken:
    """The first line, counted from 1, that is not what was written, and why."""

    line: int
    reason: str


class AuditLog:
    """The one writer of a log. Opening it sets a line aside that a crash cut short, and writes down that it did.

    Raises :class:`AuditError` where another process writes to it, or its last line is not one of such a log. It is not
    read from its beginning: that is for :func:`verify`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AuditError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise AuditError(f"{path} is being written by another process") from None
            sync_folder(path.parent)
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
        """Write entries, a line each; on return they are on the disk. Raises :class:`AuditError` and writes none."""
        return self._append(*entries)

    def close(self) -> None:
        """Let another process write."""
        os.close(self._file)
        self._file = -1

    def _append(self, *entries: Entry) -> Anchor:
        head, lines = self._head, []
        for entry in entries:
            line, head = _line(entry, head)
            lines.append(line)
        data = b"".join(lines)
        try:
            there, here = self._path.stat(), os.fstat(self._file)
            if (there.st_ino, there.st_dev, here.st_size) != (here.st_ino, here.st_dev, self._size):
                raise AuditError(f"{self._path} was changed or moved by somebody else while it was written")
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
            read = _read_line(last)
            if isinstance(read, str):
                raise AuditError(f"the last line of {self._path} {read}; 'fedplatform audit verify' says more")
            self._head = Anchor(read.number, read.sha256)
        elif start:
            raise AuditError(f"{self._path} is no audit log")
        if torn:
            name = f"{self._path.name}.torn-{hashlib.sha256(torn).hexdigest()[:16]}"
            try:
                write_owned(self._path.with_name(name), torn)
                os.ftruncate(self._file, self._size - len(torn))
            except (OSError, OwnedFileError) as error:
                raise AuditError(f"a torn line of {self._path} cannot be set aside: {error}") from error
            self._size -= len(torn)
            self._append(TornEntry(length=len(torn), set_aside=name))


def verify(path: Path, *, anchor: Anchor | None = None) -> Verified | Broken:
    """Check every line, and that the log still goes through ``anchor``; raises :class:`AuditError` if there is no log.

    Without an anchor a log that lost its last lines is a shorter log, and whole.
    """
    head, torn = Anchor(0, GENESIS), []
    for number, raw in enumerate(_lines(path), start=1):
        if not raw.endswith(b"\n"):
            return Broken(number, "is cut short; whoever opens the log for writing sets it aside")
        read = _read_line(raw[:-1])
        if isinstance(read, str):
            return Broken(number, read)
        if read.number != number:
            return Broken(number, f"was written as line {read.number}")
        if read.previous != head.sha256:
            return Broken(number, "does not follow from the line before")
        head = Anchor(number, read.sha256)
        if anchor is not None and anchor.lines == number and anchor != head:
            return Broken(number, "is not the line that the anchor was taken of")
        if read.values.get("kind") == "torn":
            torn.append(number)
    if anchor is not None and anchor.lines > head.lines:
        return Broken(head.lines + 1, f"is missing: the anchor was taken of {anchor.lines} lines")
    return Verified(head, tuple(torn))


def read_entry(path: Path, line: int) -> Entry:
    """The entry in a line, counted from 1; raises :class:`AuditError` where there is none, or it was changed."""
    for number, raw in enumerate(_lines(path), start=1):
        if number == line:
            read = _read_line(raw.removesuffix(b"\n"))
            if isinstance(read, str):
                raise AuditError(f"line {line} of {path} {read}")
            return _entry(read)
    raise AuditError(f"{path} has no line {line}")


@dataclass(frozen=True)
class _Line:
    number: int
    previous: str
    sha256: str
    values: dict[str, object]


def _line(entry: Entry, head: Anchor) -> tuple[bytes, Anchor]:
    """The entry as the line behind ``head``, and the new head."""
    values = {field.name: _plain(getattr(entry, field.name)) for field in fields(entry)}
    body = {"line": head.lines + 1, "previous": head.sha256, "kind": NAMES[type(entry)], **values}
    start = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()[:-1]
    sha256 = hashlib.sha256(start).hexdigest()
    line = start + HASH + sha256.encode() + b'"}\n'
    if len(line) > LONGEST_LINE:
        raise AuditError(f"a line of the audit log has at most {LONGEST_LINE:,} bytes, got {len(line):,}")
    return line, Anchor(head.lines + 1, sha256)


def _plain(value: object) -> object:
    """As JSON, which has no infinity: a threshold that is never reached is the word."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inside) for name, inside in value.items()}
    if isinstance(value, tuple):
        return [_plain(inside) for inside in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read_line(raw: bytes) -> _Line | str:
    """A line without its end, or what is wrong with it. Every byte of it is hashed or is compared."""
    start, tail = raw[:-TAIL], raw[-TAIL:]
    sha256 = hashlib.sha256(start).hexdigest()
    if tail != HASH + sha256.encode() + b'"}':
        return "was changed: its hash is another"
    try:
        values = json.loads(raw)
        return _Line(int(values["line"]), str(values["previous"]), sha256, values)
    except (ValueError, TypeError, KeyError, RecursionError):
        return "is no line of an audit log"


def _entry(read: _Line) -> Entry:
    kind = KINDS.get(str(read.values.get("kind")))
    if kind is None:
        raise AuditError(f"line {read.number} is of a kind that is not known here: {read.values.get('kind')!r}")
    try:
        given = {field.name: read.values[field.name] for field in fields(kind)}
        entry: Entry = TypeAdapter(kind).validate_python(given)
    except (KeyError, ValidationError) as error:
        raise AuditError(f"line {read.number} lacks a field, or has a wrong one") from error
    return entry


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise AuditError(f"{path} cannot be read: {error.strerror}") from error
