"""Who is excluded on the evidence of group tests, and when an excluded hospital is tested again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedplatform.federated.secure.groups import Seating
from fedplatform.federated.secure.suspicion import GroupTest, NoisyGroupTesting

EXCLUDE, REINSTATE = 0.8, 0.4  # of the probability to lie; apart, so that nobody flickers between them
SLANDERERS = 0.3  # the share of hospitals that may join to accuse another
ACQUIT = 0.05  # of the probability without the accusers: two sound groups without them take it below
CLEARLY = 0.6  # the same: above this, slander does not explain why its groups are spoiled
WAIT = 8  # rounds from one probation of a hospital that clearly lies to the next
FIRST = 100.0  # times its weight, a conflict of the hospital on probation: it meets nobody who may accuse it


@dataclass(frozen=True)
class Exclusion:
    """An excluded hospital, and from which round on it may be tested among the others again."""

    hospital_id: str
    retest: int


@dataclass(frozen=True)
class Verdict:
    """After a round: the probability that each hospital lies, by name, and who is excluded."""

    suspicion: Mapping[str, float]
    exclusions: tuple[Exclusion, ...]


def judge_hospitals(
    testing: NoisyGroupTesting, tests: Sequence[GroupTest], before: Sequence[Exclusion], *, now: int
) -> Verdict:
    """Who is excluded after round ``now``, from all group tests and who was excluded ``before``.

    A hospital is excluded when it is probably lying, unless it is acquitted: where its worst accusers, up to
    :data:`SLANDERERS` of all hospitals, are not in its group, its groups are sound.

        >>> tests = [GroupTest(number, ("victim", "slanderer", "abc"[number]), 0.0) for number in range(3)]
        >>> tests += [GroupTest(number, ("slanderer", "d", "e"), 1.0) for number in range(3, 6)]
        >>> judge_hospitals(NoisyGroupTesting(), tests, (), now=5).exclusions
        (Exclusion(hospital_id='victim', retest=6),)
        >>> tests += [GroupTest(number, ("victim", "d", "e"), 1.0) for number in (6, 7)]
        >>> judge_hospitals(NoisyGroupTesting(), tests, (Exclusion("victim", retest=6),), now=7).exclusions
        ()
    """
    accused = testing(tests, now=now)
    without = testing.without_accusers(tests, now=now, accusers=int(SLANDERERS * len(accused)))
    was = {exclusion.hospital_id: exclusion for exclusion in before}
    suspicion = {
        name: min(chance, without[name]) if without[name] < ACQUIT else chance for name, chance in accused.items()
    }
    tested = {name: test.soundness for test in tests if test.round_number == now for name in test.members}

    def exclusion(name: str) -> Exclusion:
        """Tested again at once while it may be slandered or was sound; one that clearly lies waits."""
        if name in was and (was[name].retest > now or name not in tested):
            return was[name]
        sound = name in was and tested[name] > 0.5
        return Exclusion(name, now + 1 + (WAIT if without[name] > CLEARLY and not sound else 0))

    bound = {name: REINSTATE if name in was else EXCLUDE for name in suspicion}
    return Verdict(suspicion, tuple(exclusion(name) for name, chance in suspicion.items() if chance > bound[name]))


def next_seating(
    testing: NoisyGroupTesting, tests: Sequence[GroupTest], exclusions: Sequence[Exclusion], *, now: int
) -> Seating:
    """How the groups of round ``now`` are dealt: the excluded apart, but for the one longest due for its probation.

    A hospital is in conflict with those who, if it is honest, probably misbehave beside it. Once they are separated,
    one that was slandered has sound groups, and one that lies spoils the groups of others, too.
    """
    due = min(exclusions, key=lambda exclusion: (exclusion.retest, exclusion.hospital_id), default=None)
    on_probation = due.hospital_id if due and due.retest <= now else ""
    conflicts = tuple(
        (name, other, float(-np.log1p(-chance)) * (FIRST if name == on_probation else 1.0))
        for name in sorted({name for test in tests for name in test.members})
        for other, chance in testing.accusers_of(name, tests, now=now).items()
        if chance > testing.prior
    )
    return Seating(
        tuple(exclusion.hospital_id for exclusion in exclusions if exclusion.hospital_id != on_probation),
        on_probation,
        conflicts,
    )
