"""An answer of the audit log, worked out once more."""

from __future__ import annotations

import hashlib
import math

import torch

from fedplatform.data.images import to_images
from fedplatform.defence import KeyedNoise
from fedplatform.serving.audit import AuditEntry, AuditError
from fedplatform.serving.bundle import Bundle
from fedplatform.serving.intake import Limits, read_study
from fedplatform.serving.secret import fingerprint

TOLERANCE = 1e-4  # between the engines of a server and of an auditor


def replay(
    entry: AuditEntry,
    data: bytes,
    *,
    bundle: Bundle,
    secret: bytes,
    limits: Limits,
) -> tuple[str, ...]:
    """What comes out otherwise than was written down, a sentence each; nothing where the answer is repeated.

    ``data`` is the upload, ``bundle`` the hospital's in the version that the entry names, ``secret`` the key of its
    noise. Raises :class:`AuditError` where the upload, the model or the secret is another one.
    """
    if bundle.digest != entry.model_digest:
        raise AuditError("this is not the model of that line: its SHA-256 is another")
    if hashlib.sha256(data).hexdigest() != entry.input_sha256:
        raise AuditError("this is not the scan of that line: its SHA-256 is another")
    if fingerprint(secret) != entry.noise_fingerprint:
        raise AuditError(
            f"this is not the secret of that line: its fingerprint is {fingerprint(secret)}, the line says "
            f"{entry.noise_fingerprint}"
        )
    card = bundle.card
    study = read_study(data, size=card.size, channels=card.channels, limits=limits, slice_number=entry.slice_number)
    scans = study.scans
    number = entry.scan if entry.slice_number is None else 0  # of a volume, that one slice was read
    if number >= len(scans):
        raise AuditError(f"the upload holds {len(scans)} scans, the line is about number {number}")
    images = to_images(scans[number : number + 1])
    defended = bundle.defended(KeyedNoise(secret, entry.counter))
    with torch.no_grad():
        passage = defended.passage(images)
        (said,) = defended.conclude(passage)
    diagnosis = card.judged(said, study.origin)
    parts = {name: float(scores[0]) for name, scores in passage.parts.items()}
    there = {**vars(entry), **{f"part {name}": value for name, value in entry.parts.items()}}
    here = {**vars(diagnosis), **{f"part {name}": value for name, value in parts.items()}}
    names = ["label", "referral", "kind_score", "confidence", "anomaly_score", "threshold", "flagged", "depth", "votes"]
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
