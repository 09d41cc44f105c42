"""Group testing: who is probably an attacker, given which groups looked spoiled and who was in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SWEEPS = 50
SETTLED = 1e-6


@dataclass(frozen=True)
class GroupTest:
    """One group in one round: ``members`` and how sound its sum looked, 0 (spoiled beyond doubt) to 1."""

    round_number: int
    members: tuple[str, ...]
    soundness: float


@dataclass(frozen=True)
class NoisyGroupTesting:
    """Bayesian group testing (Dorfman, 1943) with noisy tests, by belief propagation (Sejdinovic and Johnson, 2010).

    A hospital lies with probability ``prior``. A group in which nobody lies looks spoiled with probability
    ``false_alarm``, one in which somebody does with ``power``; a test of soundness s counts as looking spoiled to the
    degree 1 - s. Old tests fade by ``memory`` a round, so that a hospital can earn its way back, and a sleeper is found
    by what it does now.
    """

    prior: float = 0.15
    false_alarm: float = 0.1
    power: float = 0.7
    memory: float = 0.98

    def __post_init__(self) -> None:
        if not (0 < self.prior < 1 and 0 < self.false_alarm < self.power < 1 and 0 < self.memory <= 1):
            raise ValueError(
                "group testing needs 0 < prior < 1, 0 < false_alarm < power < 1 and 0 < memory <= 1, "
                f"got prior={self.prior}, false_alarm={self.false_alarm}, power={self.power}, memory={self.memory}"
            )

    def __call__(self, tests: Sequence[GroupTest], *, now: int) -> Mapping[str, float]:
        """The probability that each tested hospital lies, by name; ``now`` is the round from which tests have aged."""
        names = sorted({name for test in tests for name in test.members})
        member = np.array([[name in test.members for name in names] for test in tests], dtype=bool)
        sound = np.array([test.soundness for test in tests])
        fading = self.memory ** np.array([now - test.round_number for test in tests], dtype=np.float64)
        clean = (sound * (1 - self.false_alarm) + (1 - sound) * self.false_alarm) ** fading
        spoiled = (sound * (1 - self.power) + (1 - sound) * self.power) ** fading
        prior = np.log(self.prior / (1 - self.prior))
        said = np.zeros(member.shape)  # what each test tells each member, as a log-likelihood ratio for lying
        for _ in range(SWEEPS):
            heard = prior + said.sum(axis=0) - said  # what each member tells each test: all but what that test said
            honest = np.where(member, 1 / (1 + np.exp(heard)), 1.0)
            others = np.exp(np.log(honest).sum(axis=1, keepdims=True) - np.log(honest))  # chance that no other lies
            unlucky = spoiled[:, None] + (clean - spoiled)[:, None] * others
            new = np.where(member, np.log(spoiled)[:, None] - np.log(unlucky), 0.0)
            moved = float(np.abs(new - said).max(initial=0.0))
            said = (said + new) / 2  # damped: groups share members, and undamped messages may swing
            if moved < SETTLED:
                break
        belief = 1 / (1 + np.exp(-(prior + said.sum(axis=0))))
        return dict(zip(names, belief.tolist(), strict=True))
