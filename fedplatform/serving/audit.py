"""The audit log: what was answered to whom, in lines that each carry the hash of the one before."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedplatform.core.errors import FedplatformError

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
    ``slice_number`` is that of a volume's slice. ``referral`` is why it was referred, None where it was not;
    ``kind_score`` is how strange it looked. ``counter`` is that of KeyedNoise, and ``noise_fingerprint`` tells which
    secret keyed it.
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
    referral: str | None
    kind_score: float
    confidence: float
    counter: int
    noise_fingerprint: str


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


@dataclass(frozen=True, kw_only=True)
class ContinuedEntry:
    """The first line of a log that goes on where another one ended.

    That log had ``lines_before`` lines, the last with the hash ``sha256_before``: its anchor. ``reason`` says what
    became of it, and ``set_aside`` is where it lies beside this one, "" where whoever took it away knows.
    """

    lines_before: int
    sha256_before: str
    reason: str
    set_aside: str


Entry = AuditEntry | CertificateEntry | TornEntry | ContinuedEntry
KINDS: Mapping[str, type[Entry]] = {
    "diagnosis": AuditEntry,
    "certificate": CertificateEntry,
    "torn": TornEntry,
    "continued": ContinuedEntry,
}
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
    """Every line is whole and follows from the one before. ``torn`` are the lines that say that a crash cut one.

    ``before`` is the end of the log that this one continues, None where it is the first.
    """

    head: Anchor
    torn: tuple[int, ...]
    before: Anchor | None = None


@dataclass(frozen=True)
class Broken:
    """The first line, counted from 1, that is not what was written, and why."""

    line: int
    reason: str


def verify(path: Path, *, anchor: Anchor | None = None) -> Verified | Broken:
    """Check every line, and that the log still goes through ``anchor``; raises :class:`AuditError` if there is no log.

    Without an anchor a log that lost its last lines is a shorter log, and whole.
    """
    head, torn, before = Anchor(0, GENESIS), [], None
    for number, raw in enumerate(_lines(path), start=1):
        if not raw.endswith(b"\n"):
            return Broken(number, "is cut short; whoever opens the log for writing sets it aside")
        read = read_line(raw[:-1])
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
        if read.values.get("kind") == "continued":
            if number > 1:
                return Broken(number, "says that a log is continued, which only a first line does")
            try:
                before = Anchor.parse(f"{read.values['lines_before']}:{read.values['sha256_before']}")
            except (KeyError, AuditError):
                return Broken(number, "does not say which log it continues")
    if anchor is not None and anchor.lines > head.lines:
        return Broken(head.lines + 1, f"is missing: the anchor was taken of {anchor.lines} lines")
    return Verified(head, tuple(torn), before)


def whole_lines(path: Path, count: int) -> Anchor:
    """The anchor of a log's first ``count`` lines, which :func:`verify` found whole."""
    head = Anchor(0, GENESIS)
    for number, raw in zip(range(count), _lines(path), strict=False):
        read = read_line(raw[:-1])
        assert isinstance(read, Line)
        head = Anchor(number + 1, read.sha256)
    return head


def read_entry(path: Path, line: int) -> Entry:
    """The entry in a line, counted from 1; raises :class:`AuditError` where there is none, or it was changed."""
    for number, raw in enumerate(_lines(path), start=1):
        if number == line:
            read = read_line(raw.removesuffix(b"\n"))
            if isinstance(read, str):
                raise AuditError(f"line {line} of {path} {read}")
            return _entry(read)
    raise AuditError(f"{path} has no line {line}")


@dataclass(frozen=True)
class Line:
    """A line as it was read: its place, the hash of the line before, its own, and all its values."""

    number: int
    previous: str
    sha256: str
    values: dict[str, object]


def line_of(entry: Entry, head: Anchor) -> tuple[bytes, Anchor]:
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


def read_line(raw: bytes) -> Line | str:
    """A line without its end, or what is wrong with it. Every byte of it is hashed or is compared."""
    start, tail = raw[:-TAIL], raw[-TAIL:]
    sha256 = hashlib.sha256(start).hexdigest()
    if tail != HASH + sha256.encode() + b'"}':
        return "was changed: its hash is another"
    try:
        values = json.loads(raw)
        return Line(int(values["line"]), str(values["previous"]), sha256, values)
    except (ValueError, TypeError, KeyError, RecursionError):
        return "is no line of an audit log"


def _entry(read: Line) -> Entry:
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
