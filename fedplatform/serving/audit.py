"""The audit log: what was answered to whom, in lines that each carry the hash of the one before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class AuditError(ValueError):
    """The log cannot be opened, read or written; the message is one line for the person who keeps it."""


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One scan's diagnosis, as far as an auditor needs it to repeat it; never a pixel, never a secret.

    ``time`` is ISO 8601 in UTC. ``input_sha256`` is of the upload's bytes; ``scan`` counts the scans in it from 0 and
    ``slice_number`` is what was asked for. ``counter`` is that of KeyedNoise.
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


@dataclass(frozen=True)
class Anchor:
    """The end of the log at some time: how many lines, and the hash of the last. Kept elsewhere, it shows a cut.

    Its text is ``LINES:SHA256``.
    """

    lines: int
    sha256: str

    @staticmethod
    def parse(text: str) -> Anchor:
        """From its text; raises :class:`AuditError`."""
        raise NotImplementedError


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

    Raises :class:`AuditError` where another process writes to it, or its last line is not one of such a log.
    """

    def __init__(self, path: Path) -> None:
        raise NotImplementedError

    @property
    def head(self) -> Anchor:
        """The present end of the log."""
        raise NotImplementedError

    def append(self, *entries: AuditEntry | CertificateEntry) -> Anchor:
        """Write the entries, one line each; on return they are on the disk. Raises :class:`AuditError`, writing none."""
        raise NotImplementedError

    def close(self) -> None:
        """Let another process write."""
        raise NotImplementedError


def verify(path: Path, *, anchor: Anchor | None = None) -> Verified | Broken:
    """Check every line, and that the log still goes through ``anchor``.

    Without an anchor a log that lost its last lines is a shorter log, and whole.
    """
    raise NotImplementedError


def read_entry(path: Path, line: int) -> AuditEntry | CertificateEntry:
    """The entry in a line, counted from 1; raises :class:`AuditError` where there is none."""
    raise NotImplementedError
