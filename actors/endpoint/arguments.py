"""What the endpoint has to be told: the arguments of the application, and its user configuration."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fedplatform.core.settings import Settings
from fedplatform.serving.refused import Limits
from fedplatform.serving.secret import open_secret, secret_path
from fedplatform.serving.versions import CHAMPION, SERVING, Versions, versions_at


class EndpointArguments(Settings):
    """Arguments of ``actors.endpoint:app``; an unknown one is refused."""

    versions: str = Field(description="a run folder, or models:/NAME in MLflow's registry")
    registry: str = Field("", description="MLflow's tracking URI, for models:/NAME")
    state: str = Field(description="folder of the audit log and of the hospitals' secrets")
    keys: str = Field("", description="file of API keys; without one, everybody who reaches the port may ask")
    rate: float = Field(50.0, gt=0, description="scans a second that a key may send in the long run")
    burst: int = Field(600, ge=64, description="scans that a key may send at once")
    gpus: float = Field(
        0.0, ge=0, description="GPUs that Diagnostician and Purifying take each; 0: ONNX Runtime on CPUs"
    )
    waiting: int = Field(64, ge=1, description="requests under way at a time; the next one is told to come back")
    root_path: str = Field(
        "", pattern=r"^(/[\w.~-]+)*/?$", description="path prefix under which a reverse proxy shows the endpoint"
    )
    allow_origins: list[str] = Field([], description="origins whose pages may ask from a browser (CORS); * for all")

    max_bytes: int = Field(Limits.bytes, ge=1, description="bytes of one file")
    max_pixels: int = Field(Limits.pixels, ge=1, description="pixels or voxels of one file")
    max_picture: int = Field(Limits.picture, ge=1, description="pixels of one picture, frame or slice")
    max_scans: int = Field(Limits.scans, ge=1, description="frames or pages of one file, and scans of one request")
    max_slices: int = Field(Limits.slices, ge=1, description="slices of a volume that are looked at")
    max_files: int = Field(Limits.files, ge=1, description="files of one request")
    max_header: int = Field(Limits.header, ge=1, description="bytes of one file before its pixels")

    @property
    def limits(self) -> Limits:
        """What one upload may cost."""
        return Limits(
            bytes=self.max_bytes,
            pixels=self.max_pixels,
            picture=self.max_picture,
            scans=self.max_scans,
            slices=self.max_slices,
            files=self.max_files,
            header=self.max_header,
        )

    def where(self) -> Versions:
        """The versions that are served."""
        return versions_at(self.versions, registry=self.registry, cache=Path(self.state) / SERVING / "cache")

    @property
    def audit_log(self) -> Path:
        """The log that every answer is written to before it is given."""
        return Path(self.state) / SERVING / "audit.jsonl"

    def secret(self, hospital_id: str) -> bytes:
        """The secret that a hospital's noise follows from, made at the first call."""
        return open_secret(secret_path(Path(self.state), hospital_id))


class UserConfiguration(Settings):
    """What may change while the endpoint runs, without a restart: ``user_config`` of the deployment Ingress."""

    version: str = Field(CHAMPION, description="a version's number, or champion: whatever the alias names")
