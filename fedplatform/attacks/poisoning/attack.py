"""The three ways to lie to a federation, as interfaces; an attack is a frozen dataclass that has one of them.

NIST AI 100-2 calls attacks on training *poisoning*. What is corrupted decides which interface an attack implements: the
attacker's own scans (:class:`DataPoisoning`), the update it sends (:class:`UpdatePoisoning`), or the updates of all
attackers, made after a look at what the honest hospitals sent (:class:`Collusion`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Situation:
    """What an attacker knows when it forges an update.

    ``previous_delta`` (d,) is the last round's step of the server, seen from two broadcasts; ``generator`` the
    attacker's own random stream.
    """

    num_hospitals: int
    num_byzantine: int
    round_number: int
    previous_delta: torch.Tensor
    generator: torch.Generator


@runtime_checkable
class DataPoisoning(Protocol):
    """Corrupts the attacker's own training scans once, before training; the training itself is honest."""

    def poison(
        self, images: np.ndarray, labels: np.ndarray, *, num_classes: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Map uint8 images (n, c, h, w) and labels (n,), or (n, k) of 0 and 1, to poisoned copies of them."""
        ...


@runtime_checkable
class UpdatePoisoning(Protocol):
    """Corrupts the update that the attacker's honest training gave; needs nobody else."""

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the attacker's own honest update (d,) to what it sends (d,)."""
        ...


@runtime_checkable
class Collusion(Protocol):
    """Forges the updates of all attackers from the honest ones: the omniscient adversary of the literature."""

    def collude(self, honest: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the honest updates (h, d) to what all attackers send (d,), or each its own (num_byzantine, d)."""
        ...


PoisoningAttack = DataPoisoning | UpdatePoisoning | Collusion
