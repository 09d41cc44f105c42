"""What is answered to a question, as it goes over the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fedplatform.defence import Certificate, Diagnosis


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(_Wire):
    """The diagnosis of one scan, what it rests on and how long it took."""

    request_id: str
    model_version: str
    hospital_id: str
    scan: int = Field(ge=0, description="number of the scan in the upload, from 0")
    label: int = Field(ge=0, description="number of the class")
    class_name: str
    referred: bool = Field(description="too doubtful to stand: a radiologist must look")
    confidence: float = Field(ge=0, le=1, description="calibrated probability of the class")
    probabilities: dict[str, float] = Field(description="calibrated probability of every class")
    anomaly_score: float | None = Field(description="in deviations of this hospital's clean scans; null: not a number")
    threshold: float | None = Field(description="the score above which a scan is flagged; null: none")
    parts: dict[str, float | None] = Field(description="the scores that the anomaly score is fused of")
    flagged: bool
    purified: bool
    depth: int = Field(ge=0, description="noise step of the purification, 0: the scan was taken as it is")
    votes: list[str] = Field(description="the answers of the purified copies")
    milliseconds: dict[str, float] = Field(description="how long each stage took")
    anomaly_map: str | None = Field(None, description="PNG in base64: where the scan is not as expected")
    purified_scan: str | None = Field(None, description="PNG in base64: the scan that was classified")


class CertificateAnswer(_Wire):
    """What was proved about one scan."""

    request_id: str
    model_version: str
    hospital_id: str
    scan: int = Field(ge=0)
    label: int | None = Field(description="number of the class; null: nothing could be proved")
    class_name: str | None
    radius: float = Field(ge=0, description="L2 length, in pixels of [0, 1], below which no change alters the class")
    lower_bound: float = Field(ge=0, le=1, description="of the probability of the class under noise")
    sigma: float = Field(gt=0, description="the noise")
    samples: int = Field(ge=1)
    confidence: float = Field(gt=0, lt=1, description="probability that the statement is true, over the noise")
    milliseconds: dict[str, float]


class ErrorAnswer(_Wire):
    """Why there is no answer, in one sentence."""

    request_id: str
    error: str


def answer_of(
    diagnosis: Diagnosis,
    *,
    classes: Sequence[str],
    parts: Mapping[str, float],
    scan: int,
    request_id: str,
    hospital_id: str,
    model_version: str,
    milliseconds: Mapping[str, float],
    anomaly_map: bytes | None = None,
    purified_scan: bytes | None = None,
) -> Answer:
    """A diagnosis as it is answered; the pictures are PNG files (:func:`heat_map`, :func:`picture`)."""
    raise NotImplementedError


def certificate_answer_of(
    certificate: Certificate,
    *,
    classes: Sequence[str],
    scan: int,
    request_id: str,
    hospital_id: str,
    model_version: str,
    milliseconds: Mapping[str, float],
) -> CertificateAnswer:
    """A certificate as it is answered."""
    raise NotImplementedError


def heat_map(patch_errors: np.ndarray, *, location: float, scale: float, size: int) -> bytes:
    """Errors of one scan's patches (patches,), row by row of a square, as a PNG of size x size.

    ``location`` and ``scale`` are those of the score "reconstruction" in the detector's fusion: the colours mean the
    same for every scan of a hospital.
    """
    raise NotImplementedError


def picture(image: np.ndarray) -> bytes:
    """An image (c, h, w) in [0, 1], c = 1 or 3, as a PNG."""
    raise NotImplementedError
