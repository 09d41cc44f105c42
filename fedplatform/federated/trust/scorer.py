"""The one interface of every trust scorer, and the lessons that a learning one is taught with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from fedplatform.federated.trust.fingerprint import Fingerprints


@dataclass(frozen=True, eq=False)
class Lesson:
    """A round that the server played by itself: fingerprints, and who lied in it, (n,) bool, and how ("none" too).

    Lessons of one ``attack`` follow each other in the order of the played rounds.
    """

    fingerprints: Fingerprints
    byzantine: np.ndarray
    attack: str


@runtime_checkable
class TrustScorer(Protocol):
    """Turns the fingerprints of a round into trust.

    An implementation is a frozen dataclass whose fields are its settings. What it has learned, its *skill*, goes in and
    comes out, so that it can be stored with the rest of the server's state; a scorer that learns nothing has None. One
    that learns says by a tuple ``skill_kinds`` of which dataclasses its skill is made.
    """

    @property
    def needs_lessons(self) -> bool:
        """Whether the server has to play rounds by itself before the first one."""
        ...

    def prepare(self, lessons: Sequence[Lesson], *, generator: torch.Generator) -> object:
        """The skill to begin with."""
        ...

    def score(self, fingerprints: Fingerprints, reputation: np.ndarray, skill: object) -> np.ndarray:
        """Trust (n,) float64, 0 to 1, in the hospitals of a round; ``reputation`` (n,) is what they had before it."""
        ...

    def learn(
        self, fingerprints: Fingerprints, beliefs: np.ndarray, skill: object, *, generator: torch.Generator
    ) -> object:
        """The skill after a round whose hospitals were in the end believed so far: ``beliefs`` (n,), 0 to 1."""
        ...
