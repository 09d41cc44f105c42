"""Group testing: who is probably an attacker, given which groups looked spoiled and who was in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
        names, _, said = self._evidence(tests, now=now)
        belief = _chance(self._prior + said.sum(axis=0))
        return dict(zip(names, belief.tolist(), strict=True))

    def without_accusers(self, tests: Sequence[GroupTest], *, now: int, accusers: int) -> Mapping[str, float]:
        """The same with a hospital's worst ``accusers`` struck out: no test counts that it shared with one of them.

        Hospitals that misbehave only beside their victim cannot bring it above what its other groups say, where they
        are no more than ``accusers``. A hospital that misbehaves beside everybody is found all the same. Accusers are
        chosen greedily, each time the one whose tests weigh most against the hospital.
        """
        names, member, said = self._evidence(tests, now=now)
        left = [
            self._prior + _without_worst(said[of, place], member[of], place, accusers)
            for place, of in enumerate(member.T)
        ]
        return dict(zip(names, _chance(np.array(left)).tolist(), strict=True))

    def accusers_of(self, hospital_id: str, tests: Sequence[GroupTest], *, now: int) -> Mapping[str, float]:
        """If ``hospital_id`` is honest, the probability that each hospital it met misbehaves beside it, by name."""
        others = (
            replace(test, members=tuple(name for name in test.members if name != hospital_id))
            for test in tests
            if hospital_id in test.members
        )
        return self([test for test in others if test.members], now=now)

    @property
    def _prior(self) -> float:
        return float(np.log(self.prior / (1 - self.prior)))

    def _likelihoods(
        self, tests: Sequence[GroupTest], *, now: int
    ) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """Names (n), who is in which test (t, n), each outcome's likelihood if clean and if spoiled (t,)."""
        names = sorted({name for test in tests for name in test.members})
        member = np.array([[name in test.members for name in names] for test in tests], dtype=bool)
        member = member.reshape(len(tests), len(names))  # also where there is no test
        sound = np.array([test.soundness for test in tests])
        fading = self.memory ** np.array([now - test.round_number for test in tests], dtype=np.float64)
        clean = (sound * (1 - self.false_alarm) + (1 - sound) * self.false_alarm) ** fading
        spoiled = (sound * (1 - self.power) + (1 - sound) * self.power) ** fading
        return names, member, clean, spoiled

    def _evidence(self, tests: Sequence[GroupTest], *, now: int) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Names (n), who is in which test (t, n), and what each test tells each member (t, n)."""
        names, member, clean, spoiled = self._likelihoods(tests, now=now)
        said = np.zeros(member.shape)  # what each test tells each member, as a log-likelihood ratio for lying
        for _ in range(SWEEPS):
            heard = (
                self._prior + said.sum(axis=0) - said
            )  # what each member tells each test: all but what that test said
            honest = np.where(member, 1 / (1 + np.exp(heard)), 1.0)
            others = np.exp(np.log(honest).sum(axis=1, keepdims=True) - np.log(honest))  # chance that no other lies
            unlucky = spoiled[:, None] + (clean - spoiled)[:, None] * others
            new = np.where(member, np.log(spoiled)[:, None] - np.log(unlucky), 0.0)
            moved = float(np.abs(new - said).max(initial=0.0))
            said = (said + new) / 2  # damped: groups share members, and undamped messages may swing
            if moved < SETTLED:
                break
        return names, member, said


def _chance(log_odds: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-log_odds)))


def _without_worst(said: np.ndarray, member: np.ndarray, place: int, accusers: int) -> float:
    """What tests (t,) say of the hospital at ``place``, but for those with its worst accusers; ``member`` is (t, n)."""
    beside = member.copy()
    beside[:, place] = False
    for _ in range(accusers):
        against = said @ beside
        worst = int(against.argmax())
        if not against[worst] > 0:
            break
        keep = ~beside[:, worst]
        said, beside = said[keep], beside[keep]
    return float(said.sum())
