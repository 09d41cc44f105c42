"""Trust by rule: no learning, only robust z-scores and what is strange about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedplatform.federated.trust.anomaly import AnomalyDetection
from fedplatform.federated.trust.fingerprint import Fingerprints
from fedplatform.federated.trust.scorer import Lesson


@dataclass(frozen=True)
class RobustScores:
    """Trust is what the anomaly detection leaves: 1 where nothing is strange, 0 where one thing is beyond doubt.

    The four numbers weigh its tests: a z-score counts so many times. 0 leaves a test out.
    """

    length: float = 1.0
    direction: float = 1.0
    harm: float = 1.0
    strangeness: float = 1.0

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if not weight >= 0:
                raise ValueError(f"RobustScores needs {name} >= 0, got {weight}")

    @property
    def needs_lessons(self) -> bool:
        """It learns nothing."""
        return False

    def prepare(self, lessons: Sequence[Lesson], *, generator: torch.Generator) -> None:
        """Nothing to prepare."""

    def score(self, fingerprints: Fingerprints, reputation: np.ndarray, skill: object) -> np.ndarray:
        """Trust (n,) in the hospitals of a round."""
        return AnomalyDetection().weighted(**vars(self))(fingerprints).normality

    def learn(
        self, fingerprints: Fingerprints, beliefs: np.ndarray, skill: object, *, generator: torch.Generator
    ) -> None:
        """Nothing to learn."""
