"""The three ways to lie to a federation, as interfaces; an attack is a frozen dataclass that has one of them.

NIST AI 100-2 calls attacks on training *poisoning*. What is corrupted decides which interface an attack implements: the
attacker's own scans (:class:`DataPoisoning`), the update it sends (:class:`UpdatePoisoning`; a backdoor may need both),
or the updates of all attackers, made after a look at what the honest hospitals sent (:class:`Collusion`). The other
interfaces are optional: they say that attackers have different parts, what opens a backdoor, in which rounds an attack
lies, and under which name an attacker takes part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Situation:
    """What an attacker knows when it forges an update.

    ``previous_delta`` (d,) is the last round's step of the server, seen from two broadcasts; ``generator`` the
    attacker's own random stream; ``weights`` (d,) what was broadcast, None where nobody told. ``honest_ids`` are the
    honest hospitals of the federation in order. ``group`` names the members of the attacker's own group under secure
    aggregation, else it is empty. ``memory`` is what the attack keeps for itself from round to round, under names of
    its own; the attack writes to it, and it survives a restart of the attacker.
    """

    num_hospitals: int
    num_byzantine: int
    round_number: int
    previous_delta: torch.Tensor
    generator: torch.Generator
    weights: torch.Tensor | None = None
    honest_ids: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    memory: dict[str, torch.Tensor] = field(default_factory=dict)


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


@runtime_checkable
class Backdooring(Protocol):
    """Plants a backdoor: a test scan that carries the trigger is to be answered with ``target``."""

    @property
    def target(self) -> int:
        """The class, or the finding, that the backdoor is to give."""
        ...

    def stamp(self, images: np.ndarray) -> np.ndarray:
        """Copies of uint8 test scans (n, c, h, w) as they look to a model that is tried for the backdoor."""
        ...


@runtime_checkable
class Divided(Protocol):
    """Gives each attacker a part of its own."""

    def part(self, number: int, of: int) -> PoisoningAttack:
        """What attacker ``number`` of ``of``, from 0, does."""
        ...


@runtime_checkable
class Intermittent(Protocol):
    """Lies in some rounds and is honest in the others, where nobody can detect it."""

    def lies_in(self, round_number: int) -> bool:
        """Whether it lies in this round, from 1."""
        ...


@runtime_checkable
class Renaming(Protocol):
    """Takes part under changing names, so that the server does not know the attacker again."""

    def name_in(self, hospital_id: str, round_number: int) -> str:
        """The name under which an attacker takes part in a round, from 1."""
        ...


PoisoningAttack = DataPoisoning | UpdatePoisoning | Collusion
