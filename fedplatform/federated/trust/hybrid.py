"""The hybrid trust: what the policy decides and what the dual attention network holds likely, mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fedplatform.federated.trust.dual_attention import DualAttention
from fedplatform.federated.trust.fingerprint import Fingerprints
from fedplatform.federated.trust.policy import TrustPolicy
from fedplatform.federated.trust.scorer import Lesson


@dataclass(frozen=True, eq=False)
class HybridSkill:
    """The skills of both parts."""

    prior: object
    policy: object


@dataclass(frozen=True)
class Hybrid:
    """The hybrid trust of OptiGradTrust (arXiv 2507.23638): tau * a + (1 - tau) * w of the prior.

    The prior is taught first; the policy then sees, beside the features and the reputation, the prior's hidden state h
    of every hospital. Raises ValueError unless 0 <= tau <= 1.
    """

    tau: float = 0.5
    prior: DualAttention = field(default_factory=DualAttention)
    policy: TrustPolicy = field(default_factory=TrustPolicy)

    def __post_init__(self) -> None:
        if not 0 <= self.tau <= 1:
            raise ValueError(f"Hybrid needs 0 <= tau <= 1, got tau={self.tau}")

    @property
    def skill_kinds(self) -> tuple[type, ...]:
        """Of what the skills of both parts are made."""
        return (HybridSkill, *self.prior.skill_kinds, *self.policy.skill_kinds)

    @property
    def needs_lessons(self) -> bool:
        """Both parts have to be taught."""
        return True

    def prepare(self, lessons: Sequence[Lesson], *, generator: torch.Generator) -> HybridSkill:
        """Learn the lessons. Raises ValueError where there are none."""
        prior = self.prior.prepare(lessons, generator=generator)
        observations = [self._observation(lesson.fingerprints, prior) for lesson in lessons]
        return HybridSkill(prior, self.policy.practise(lessons, observations, generator=generator))

    def score(self, fingerprints: Fingerprints, reputation: np.ndarray, skill: object) -> np.ndarray:
        """Trust (n,) float64."""
        assert isinstance(skill, HybridSkill)
        level = self.policy.act(self._observation(fingerprints, skill.prior), reputation, skill.policy)
        prior = self.prior.score(fingerprints, reputation, skill.prior)
        return self.tau * level + (1 - self.tau) * prior

    def learn(
        self, fingerprints: Fingerprints, beliefs: np.ndarray, skill: object, *, generator: torch.Generator
    ) -> HybridSkill:
        """The skill after a round."""
        assert isinstance(skill, HybridSkill)
        observation = self._observation(fingerprints, skill.prior)
        return HybridSkill(
            self.prior.learn(fingerprints, beliefs, skill.prior, generator=generator),
            self.policy.remember(fingerprints, observation, beliefs, skill.policy, generator=generator),
        )

    def _observation(self, fingerprints: Fingerprints, prior: object) -> np.ndarray:
        return np.column_stack([fingerprints.table(), self.prior.hidden(fingerprints, prior)])
