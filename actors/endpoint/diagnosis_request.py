"""From what became of a scan to what is written down and what is answered."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from actors.endpoint.authentication import Caller
from actors.endpoint.model_store import COUNTER, ModelName
from actors.endpoint.pipeline import Outcome
from actors.endpoint.wire import ModelAnswer, RecentAnswer, StudyAnswer
from fedplatform.data.origin import Origin
from fedplatform.defence import Certificate
from fedplatform.defence.diagnosis import FOREIGN
from fedplatform.serving.answer import Answer, CertificateAnswer, answer_of, certificate_answer_of, heat_map, picture
from fedplatform.serving.audit import AuditEntry, CertificateEntry
from fedplatform.serving.bundle import Bundle
from fedplatform.serving.suspicion import most_suspicious


@dataclass(frozen=True)
class Place:
    """Where a scan stands: the SHA-256 of its file, what the file's header says, and its number there.

    ``slice_number`` is that of a volume's slice.
    """

    digest: str
    origin: Origin
    scan: int
    slice_number: int | None


@dataclass(frozen=True, eq=False)
class DiagnosisRequest:
    """One request: who asked which model, and of which slice where one was named."""

    request_id: str
    caller: Caller
    name: ModelName
    bundle: Bundle
    noise_fingerprint: str
    slice_number: int | None

    def entry(self, place: Place, outcome: Outcome) -> AuditEntry:
        """The audit log's line of one diagnosis."""
        said = outcome.diagnosis
        return AuditEntry(
            request_id=self.request_id,
            time=_now(),
            key_id=self.caller.key_id,
            hospital_id=self.name.hospital_id,
            input_sha256=place.digest,
            scan=place.scan,
            slice_number=place.slice_number,
            model_version=self.name.version,
            model_digest=self.bundle.digest,
            purifier_digest=self.bundle.purifier_digest,
            threshold=said.threshold,
            anomaly_score=said.anomaly_score,
            parts=outcome.parts,
            flagged=said.flagged,
            depth=said.depth,
            votes=said.votes,
            label=said.label,
            referral=said.referral,
            kind_score=said.kind_score,
            confidence=said.confidence,
            counter=COUNTER,
            noise_fingerprint=self.noise_fingerprint,
        )

    def certificate_entry(self, digest: str, certificate: Certificate, *, seed: int) -> CertificateEntry:
        """The audit log's line of a certificate."""
        return CertificateEntry(
            request_id=self.request_id,
            time=_now(),
            key_id=self.caller.key_id,
            hospital_id=self.name.hospital_id,
            input_sha256=digest,
            scan=0,
            slice_number=self.slice_number,
            model_version=self.name.version,
            model_digest=self.bundle.digest,
            purifier_digest=self.bundle.purifier_digest,
            sigma=certificate.sigma,
            samples=certificate.samples,
            label=certificate.label,
            radius=certificate.radius,
            confidence=certificate.confidence,
            seed=seed,
        )

    def answer(self, place: Place, outcome: Outcome, milliseconds: Mapping[str, float]) -> Answer:
        """What is answered of one scan."""
        card = self.bundle.card
        heat = None
        if outcome.errors is not None and card.fusion is not None and "reconstruction" in card.fusion.location:
            heat = heat_map(
                outcome.errors,
                location=card.fusion.location["reconstruction"],
                scale=card.fusion.scale["reconstruction"],
                size=card.size,
            )
        return answer_of(
            outcome.diagnosis,
            classes=card.classes,
            parts=outcome.parts,
            scan=place.scan,
            slice_number=place.slice_number,
            request_id=self.request_id,
            hospital_id=self.name.hospital_id,
            model_version=self.name.version,
            milliseconds=milliseconds,
            anomaly_map=heat,
            purified_scan=None if outcome.purified is None else picture(outcome.purified),
        )

    def certificate_answer(self, certificate: Certificate, milliseconds: Mapping[str, float]) -> CertificateAnswer:
        """What is answered of a certificate."""
        return certificate_answer_of(
            certificate,
            classes=self.bundle.card.classes,
            scan=0,
            request_id=self.request_id,
            hospital_id=self.name.hospital_id,
            model_version=self.name.version,
            milliseconds=milliseconds,
        )


def study_answers(answers: Sequence[Answer], scans_by_file: Sequence[int], bundle: Bundle) -> list[StudyAnswer]:
    """For each file of a request, the answer of its most suspicious scan."""
    studies, first = [], 0
    for scans in scans_by_file:
        of_file = answers[first : first + scans]
        chances = np.array([list(answer.probabilities.values()) for answer in of_file])
        foreign = np.array([answer.referral == FOREIGN for answer in of_file])
        number = most_suspicious(chances, bundle.card.usual, foreign=foreign)
        counts = of_file[number]
        studies.append(
            StudyAnswer(
                scans=scans,
                answer=first + number,
                slice=counts.slice,
                class_name=counts.class_name,
                referral=counts.referral,
                confidence=counts.confidence,
            )
        )
        first += scans
    return studies


def model_answer(name: ModelName, bundle: Bundle) -> ModelAnswer:
    """What is told of a model."""
    card = bundle.card
    return ModelAnswer(
        hospital_id=name.hospital_id,
        model_version=name.version,
        defence=card.defence,
        classes=list(card.classes),
        size=card.size,
        channels=card.channels,
        threshold=_finite(card.gate.threshold),
        least_confidence=card.least_confidence,
        copies=len(card.copies),
        model_digest=bundle.digest,
        purifier_digest=bundle.purifier_digest,
    )


def recent_answer(entry: AuditEntry, bundle: Bundle) -> RecentAnswer:
    """What is told of an earlier diagnosis."""
    return RecentAnswer(
        request_id=entry.request_id,
        time=entry.time,
        hospital_id=entry.hospital_id,
        model_version=entry.model_version,
        class_name=bundle.card.classes[entry.label],
        referral=entry.referral,
        confidence=entry.confidence,
        anomaly_score=_finite(entry.anomaly_score),
        flagged=entry.flagged,
        depth=entry.depth,
    )


def png_text(scan: np.ndarray) -> str:
    """A scan (c, h, w) uint8 as a PNG in base64."""
    return base64.b64encode(picture(scan.astype(np.float32) / 255)).decode()


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
