"""What can be said of a defence before it is trained: the fields of ``defence.yaml``."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from fedplatform.core.settings import Settings, parsed_by, written_by
from fedplatform.defence import SAMPLERS, Sampler
from fedplatform.learning.models import MODELS, ModelBuilder


class DefenceSettings(Settings):
    """How the defence of a run is trained and used; depths are noise steps of 1000."""

    autoencoder: Annotated[ModelBuilder, parsed_by(MODELS, "model"), written_by(MODELS)] = Field(
        "masked_autoencoder",  # type: ignore[assignment]
        description="masked autoencoder of the detector",
    )
    autoencoder_rounds: int = Field(10, ge=1, description="rounds in which the masked autoencoder is trained")
    sensor: Annotated[ModelBuilder, parsed_by(MODELS, "model"), written_by(MODELS)] = Field(
        "residual_sensor",  # type: ignore[assignment]
        description="network of the detector that is taught to tell attacked scans",
    )
    sensor_rounds: int = Field(8, ge=1, description="rounds in which the sensor is trained")
    purifier: Annotated[ModelBuilder, parsed_by(MODELS, "model"), written_by(MODELS)] = Field(
        "noise_predictor(t_max=260)",  # type: ignore[assignment]
        description="noise predictor of the purifier",
    )
    purifier_rounds: int = Field(12, ge=1, description="rounds in which the purifier is trained")
    sampler: Annotated[Sampler, parsed_by(SAMPLERS, "sampler"), written_by(SAMPLERS)] = Field(
        "one_shot",  # type: ignore[assignment]
        description=f"the purifier's way back: {', '.join(SAMPLERS)}",
    )
    tuning_rounds: int = Field(6, ge=1, description="rounds in which the classifier is tuned on purified scans")
    tuning_epsilon: float | None = Field(
        None,
        ge=0,
        le=1,
        description="attack through the purifier while the classifier is tuned, in pixel units, 0 is none (default: "
        "1.5 times what the classifier met in training)",
    )
    probe_depth: int = Field(100, ge=1, description="depth at which every scan is purified once, to see what changes")
    usual_depth: int = Field(
        0, ge=0, description="depth for scans that are not flagged (0: they are taken as they are)"
    )
    least_depth: int = Field(75, ge=1, description="depth for the least suspicious of the flagged scans")
    most_depth: int = Field(125, ge=1, description="depth for the most suspicious scans")
    copies: int = Field(8, ge=1, description="purified copies of a flagged scan that vote")
    false_positive_rate: float = Field(0.05, gt=0, lt=1, description="share of clean scans that may be flagged")
    referral_rate: float = Field(
        0.05, ge=0, lt=1, description="share of clean scans that may be referred to a radiologist for doubt"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.least_depth > self.most_depth:
            raise ValueError(f"the least depth is at most the most, got {self.least_depth} and {self.most_depth}")
        return self
