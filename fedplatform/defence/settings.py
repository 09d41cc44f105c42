"""What can be said of a defence before it is trained: the fields of ``defence.yaml``."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from fedplatform.core.settings import Settings, parsed_by, written_by
from fedplatform.defence import SAMPLERS, OneShot, Sampler
from fedplatform.learning.models import MODELS, MaskedAutoencoder, ModelBuilder, NoisePredictor, ResidualSensor


class DefenceSettings(Settings):
    """How the defence of a run is trained and used; depths are noise steps of 1000."""

    autoencoder: Annotated[ModelBuilder, parsed_by(MODELS, "model"), written_by(MODELS)] = Field(MaskedAutoencoder())
    autoencoder_rounds: int = Field(10, ge=1)
    sensor: Annotated[ModelBuilder, parsed_by(MODELS, "model"), written_by(MODELS)] = Field(ResidualSensor())
    sensor_rounds: int = Field(8, ge=1)
    purifier: Annotated[ModelBuilder, parsed_by(MODELS, "model"), written_by(MODELS)] = Field(NoisePredictor(t_max=260))
    purifier_rounds: int = Field(12, ge=1)
    sampler: Annotated[Sampler, parsed_by(SAMPLERS, "sampler"), written_by(SAMPLERS)] = Field(OneShot())
    tuning_rounds: int = Field(6, ge=1)
    tuning_epsilon: float | None = Field(None, ge=0, le=1)
    probe_depth: int = Field(100, ge=1)
    usual_depth: int = Field(0, ge=0)
    least_depth: int = Field(75, ge=1)
    most_depth: int = Field(125, ge=1)
    copies: int = Field(8, ge=1)
    false_positive_rate: float = Field(0.05, gt=0, lt=1)
    referral_rate: float = Field(0.05, ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.least_depth > self.most_depth:
            raise ValueError(f"the least depth is at most the most, got {self.least_depth} and {self.most_depth}")
        return self
