"""An answer of the audit log, worked out once more."""

from __future__ import annotations

import hashlib
import math

import torch

from fedplatform.defence import DefendedClassifier, KeyedNoise
from fedplatform.serving.audit import AuditEntry, AuditError
from fedplatform.serving.intake import Limits, read_scans
from fedplatform.training import to_images

TOLERANCE = 1e-4  # between the engines of a server and of an auditor


def replay(
    entry: AuditEntry,
    data: bytes,
    *,
    defended: DefendedClassifier,
    secret: bytes,
    size: int,
    channels: int,
    limits: Limits,
) -> tuple[str, ...]:
    """What comes out otherwise than was written down, a sentence each; nothing where the answer is repeated.

    ``data`` is the upload, ``defended`` the version of the hospital's model that the entry names, ``secret`` the key of
    its noise. Raises :class:`AuditError` where the upload is another one.
    """
    if hashlib.sha256(data).hexdigest() != entry.input_sha256:
        raise AuditError("this is not the scan of that line: its SHA-256 is another")
    scans = read_scans(data, size=size, channels=channels, limits=limits, slice_number=entry.slice_number)
    if entry.scan >= len(scans):
        raise AuditError(f"the upload holds {len(scans)} scans, the line is about number {entry.scan}")
    images = to_images(scans[entry.scan : entry.scan + 1])
    noise = KeyedNoise(secret, entry.counter)
    with torch.no_grad():
        passage = defended.passage(images, noise=noise)
        (diagnosis,) = defended.conclude(passage)
    parts = {name: float(scores[0]) for name, scores in passage.parts.items()}
    there = {**vars(entry), **{f"part {name}": value for name, value in entry.parts.items()}}
    here = {**vars(diagnosis), **{f"part {name}": value for name, value in parts.items()}}
    names = ["label", "referred", "confidence", "anomaly_score", "threshold", "flagged", "depth", "votes"]
    names += sorted({name for name in (*there, *here) if name.startswith("part ")})
    return tuple(
        f"{name.replace('_', ' ')} was {there.get(name)}, is {here.get(name)}"
        for name in names
        if not _same(there.get(name), here.get(name))
    )


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (one != one and other != other)
    return one == other
