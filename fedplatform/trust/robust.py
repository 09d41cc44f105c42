"""Trust by rule: no learning, only robust z-scores and what is strange about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedplatform.trust.anomaly import AnomalyDetection
from fedplatform.trust.fingerprint import Fingerprints
from fedplatform.trust.scorer import Lesson


@dataclass(frozen=True)
class RobustScores:
    """Trust is what the anomaly detection leaves: 1 where nothing is strange, 0 where one thing is beyond doubt."""

    @property
    def needs_lessons(self) -> bool:
        """It learns nothing."""
        return False

    def prepare(self, lessons: Sequence[Lesson], *, generator: torch.Generator) -> None:
        """Nothing to prepare."""

    def score(self, fingerprints: Fingerprints, reputation: np.ndarray, skill: object) -> np.ndarray:
        """Trust (n,) in the hospitals of a round."""
        return AnomalyDetection()(fingerprints).normality

    def learn(
        self, fingerprints: Fingerprints, beliefs: np.ndarray, skill: object, *, generator: torch.Generator
    ) -> None:
        """Nothing to learn."""
