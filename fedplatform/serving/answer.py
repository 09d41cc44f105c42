"""What is answered to a question, as it goes over the wire."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from fedplatform.defence import Certificate, Diagnosis
from fedplatform.defence.diagnosis import DOUBTFUL, FOREIGN, FOREIGN_HEADER

BRIGHTEST = 4.0  # robust deviations; of clean scans one patch in a hundred has more than one
COLOURS = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))  # of matplotlib's magma


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(_Wire):
    """The diagnosis of one scan, what it rests on and how long it took."""

    request_id: str
    model_version: str
    hospital_id: str
    scan: int = Field(ge=0, description="number of the scan in the upload, from 0")
    slice: int | None = Field(description="number of the slice in its volume, from the feet; null: no volume")
    label: int = Field(ge=0, description="number of the class")
    class_name: str
    referral: str | None = Field(
        description="why the answer does not stand and a radiologist must look: "
        f"{', '.join((DOUBTFUL, FOREIGN, FOREIGN_HEADER))}; null: it stands"
    )
    kind_score: float | None = Field(
        description="how unlike this hospital's scans the picture is, in deviations of clean ones; null: not a number"
    )
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
    slice_number: int | None,
    request_id: str,
    hospital_id: str,
    model_version: str,
    milliseconds: Mapping[str, float],
    anomaly_map: bytes | None = None,
    purified_scan: bytes | None = None,
) -> Answer:
    """A diagnosis as it is answered; the pictures are PNG files (:func:`heat_map`, :func:`picture`)."""
    return Answer(
        request_id=request_id,
        model_version=model_version,
        hospital_id=hospital_id,
        scan=scan,
        slice=slice_number,
        label=diagnosis.label,
        class_name=classes[diagnosis.label],
        referral=diagnosis.referral,
        kind_score=_finite(diagnosis.kind_score),
        confidence=diagnosis.confidence,
        probabilities=dict(zip(classes, diagnosis.probabilities, strict=True)),
        anomaly_score=_finite(diagnosis.anomaly_score),
        threshold=_finite(diagnosis.threshold),
        parts={name: _finite(value) for name, value in parts.items()},
        flagged=diagnosis.flagged,
        purified=diagnosis.depth > 0,
        depth=diagnosis.depth,
        votes=[classes[vote] for vote in diagnosis.votes],
        milliseconds=dict(milliseconds),
        anomaly_map=_base64(anomaly_map),
        purified_scan=_base64(purified_scan),
    )


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
    return CertificateAnswer(
        request_id=request_id,
        model_version=model_version,
        hospital_id=hospital_id,
        scan=scan,
        label=certificate.label,
        class_name=None if certificate.label is None else classes[certificate.label],
        radius=certificate.radius,
        lower_bound=certificate.lower_bound,
        sigma=certificate.sigma,
        samples=certificate.samples,
        confidence=certificate.confidence,
        milliseconds=dict(milliseconds),
    )


def heat_map(patch_errors: np.ndarray, *, location: float, scale: float, size: int) -> bytes:
    """Errors of one scan's patches (patches,), row by row of a square, as a PNG of size x size: dark is as expected.

    ``location`` and ``scale`` are those of the score "reconstruction" in the detector's fusion, so the colours mean the
    same for every scan of a hospital. The score is the mean of all patches, so one of them deviates by sqrt(patches)
    times as much; from ``BRIGHTEST`` such deviations on the colour is the brightest, and where an error is no number.
    """
    side = math.isqrt(len(patch_errors))
    if side**2 != len(patch_errors):
        raise ValueError(f"a heat map needs the patches of a square, got {len(patch_errors)} of them")
    deviations = (patch_errors.astype(np.float64) - location) / scale / math.sqrt(len(patch_errors))
    shares = np.nan_to_num(deviations / BRIGHTEST, nan=1.0, posinf=1.0, neginf=0.0).clip(0, 1)
    small = Image.fromarray(shares.reshape(side, side).astype(np.float32))
    smooth = np.asarray(small.resize((size, size), Image.Resampling.BILINEAR))
    stops = np.linspace(0, 1, len(COLOURS))
    colours = [np.interp(smooth, stops, [colour[channel] for colour in COLOURS]) for channel in range(3)]
    return _png(np.stack(colours, axis=2))


def picture(image: np.ndarray) -> bytes:
    """An image (c, h, w) in [0, 1], c = 1 or 3, as a PNG."""
    pixels = image.clip(0, 1) * 255
    return _png(pixels[0] if len(image) == 1 else np.moveaxis(pixels, 0, 2))


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()
