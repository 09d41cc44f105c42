"""Attacks on reputation: to lie now and then, and to come back under a new name."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedplatform.attacks.poisoning.attack import Situation


@dataclass(frozen=True)
class OnOff:
    """The on-off attack (Sun et al., INFOCOM 2006): honest for some rounds, then lying for some, and again.

    ``honest`` rounds earn the trust that ``lying`` rounds of sign flipping, -scale * g, spend. Raises ValueError unless
    both are at least 1.
    """

    honest: int = 2
    lying: int = 2
    scale: float = 4.0

    def __post_init__(self) -> None:
        if self.honest < 1 or self.lying < 1:
            raise ValueError(f"OnOff needs honest >= 1 and lying >= 1, got {self.honest} and {self.lying}")

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the own update (d,) to what is sent (d,)."""
        return -self.scale * own if self.lies_in(situation.round_number) else own.clone()

    def lies_in(self, round_number: int) -> bool:
        """Whether it is a round of lying."""
        return (round_number - 1) % (self.honest + self.lying) >= self.honest


@dataclass(frozen=True)
class Whitewashing:
    """Whitewashing (Feldman et al., IEEE JSAC 2006): the attacker leaves, and comes back under a new name.

    It flips signs, -scale * g, and after every ``stay`` rounds takes a new name, as if another hospital had joined: a
    rule that remembers names knows nothing of it. Only the rule sees the names; a simulation's records keep the
    hospital's own. In a real federation a name is a key that somebody admits, and this costs a new admission each time.
    Raises ValueError unless stay >= 1.
    """

    stay: int = 2
    scale: float = 4.0

    def __post_init__(self) -> None:
        if self.stay < 1:
            raise ValueError(f"Whitewashing needs stay >= 1, got {self.stay}")

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the own update (d,) to what is sent (d,)."""
        return -self.scale * own

    def name_in(self, hospital_id: str, round_number: int) -> str:
        """Its own name at first, then one for each stay."""
        came_back = (round_number - 1) // self.stay
        return f"{hospital_id}, new name {came_back}" if came_back else hospital_id
