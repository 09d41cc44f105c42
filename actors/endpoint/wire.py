"""What the endpoint answers beside single diagnoses, as it goes over the wire."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from fedplatform.serving.answer import Answer, CertificateAnswer


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StudyAnswer(_Wire):
    """The answer for one file: that of its most suspicious scan."""

    scans: int = Field(ge=1, description="frames, pages or slices of the file that were looked at")
    answer: int = Field(ge=0, description="which of the answers counts, from 0")
    slice: int | None = Field(description="the slice of the volume that it is of, from the feet; null: no volume")
    class_name: str
    referral: str | None
    confidence: float


class DiagnoseAnswer(_Wire):
    """The diagnoses of all scans of a request, in the order of its files and of the scans in each file."""

    request_id: str
    answers: list[Answer]
    scans_by_file: list[int] = Field(description="how many scans each file held")
    studies: list[StudyAnswer] = Field(description="for each file, the answer of its most suspicious scan")
    seen: list[str] | None = Field(None, description="PNG in base64: each scan as it was read")


class CertifyAnswer(_Wire):
    """What was proved about one scan."""

    request_id: str
    certificate: CertificateAnswer


class ModelAnswer(_Wire):
    """One hospital's model as it is served now."""

    hospital_id: str
    model_version: str
    defence: str = Field(description="which of the library's defences it is")
    classes: list[str]
    size: int = Field(description="pixels a side that scans are fitted to")
    channels: int
    threshold: float | None = Field(description="anomaly score above which a scan is purified; null: none is")
    least_confidence: float = Field(description="confidence below which a scan is referred to a radiologist")
    copies: int = Field(description="purified copies of a flagged scan that vote")
    model_digest: str
    purifier_digest: str


class ModelsAnswer(_Wire):
    """The models that the key opens."""

    models: list[ModelAnswer]


class ExampleAnswer(_Wire):
    """One of the server's own scans to try the endpoint with; a hospital's are never shown."""

    name: str
    truth: str
    attacked: bool


class ExamplesAnswer(_Wire):
    """Scans to try the endpoint with."""

    examples: list[ExampleAnswer]


class RecentAnswer(_Wire):
    """A diagnosis as the audit log has it."""

    request_id: str
    time: str
    hospital_id: str
    model_version: str
    class_name: str
    referral: str | None
    confidence: float
    anomaly_score: float | None
    flagged: bool
    depth: int


class RecentsAnswer(_Wire):
    """The latest diagnoses for the hospitals that the key opens, newest first."""

    requests: list[RecentAnswer]


class StateAnswer(_Wire):
    """How the endpoint is."""

    state: str
    version: str | None = None
