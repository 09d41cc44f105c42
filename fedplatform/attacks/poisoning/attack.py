"""The three ways to lie to a federation, as interfaces; an attack is a frozen dataclass that has one of them.

NIST AI 100-2 calls attacks on training *poisoning*. What is corrupted decides which interface an attack implements: the
liar's own scans (:class:`DataPoisoning`), the update it sends (:class:`UpdatePoisoning`), or the updates of all liars,
made after a look at what the honest hospitals sent (:class:`Collusion`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Situation:
    """What a liar knows when it forges an update.

    ``previous_delta`` (d,) is the last round's step of the server, seen from two broadcasts; ``generator`` the liar's
    own random stream.
    """

    num_hospitals: int
    num_liars: int
    round_number: int
    previous_delta: torch.Tensor
    generator: torch.Generator


@runtime_checkable
class DataPoisoning(Protocol):
    """Corrupts the liar's own training scans once, before training; the training itself is honest."""

    def poison(
        self, images: np.ndarray, labels: np.ndarray, *, num_classes: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Map uint8 images (n, c, h, w) and labels (n,) to poisoned copies of them."""
        ...


@runtime_checkable
class UpdatePoisoning(Protocol):
    """Corrupts the update that the liar's honest training gave; needs nobody else."""

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the liar's own honest update (d,) to what it sends (d,)."""
        ...


@runtime_checkable
class Collusion(Protocol):
    """Forges the updates of all liars from the honest ones: the omniscient adversary that the literature assumes."""

    def collude(self, honest: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the honest updates (h, d) to what every liar sends (d,), or each its own (num_liars, d), in order."""
        ...


PoisoningAttack = DataPoisoning | UpdatePoisoning | Collusion
