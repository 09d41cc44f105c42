"""A rule that sees groups: it judges their means, and infers over rounds who in them lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from fedplatform.core.messages import Aggregate, Evidence, Judgement
from fedplatform.core.vectors import cosines_to, norm_of, squared_norms
from fedplatform.federated.aggregation import Aggregator
from fedplatform.federated.secure.exclusion import Exclusion, judge_hospitals, next_seating
from fedplatform.federated.secure.groups import Seating
from fedplatform.federated.secure.suspicion import GroupTest, NoisyGroupTesting
from fedplatform.federated.trust import OptiGradTrust
from fedplatform.federated.trust.anomaly import ramp
from fedplatform.federated.trust.optigradtrust import TrustMemory

LONG = (1.6, 2.4)  # times the reference length: where a group begins to be too long, and where it is beyond doubt
BACKWARDS = (0.0, 0.1)  # the same for minus the cosine to the root update
REFERENCE_ROUNDS = 10
FEARED = 0.2  # the share of attackers under which the reference length is still that of a clean group
CEILING = 3.0  # times the root update: no group moves the model further, whatever the reference is
KEPT_ROUNDS = 100  # by then a test has faded to an eighth
REFUSED = 0.2  # below this soundness a group does not reach the rule


@dataclass(frozen=True)
class GroupMemory:
    """What is remembered over rounds: every group's test, lengths of sound groups, who is excluded, the rule's own.

    ``seating`` says how the groups of the next round are to be dealt.
    """

    tests: tuple[GroupTest, ...] = ()
    lengths: tuple[tuple[float, ...], ...] = ()
    exclusions: tuple[Exclusion, ...] = ()
    inner: object = None
    seating: Seating = field(default_factory=Seating)

    @property
    def shut_out(self) -> tuple[str, ...]:
        """The names of the excluded."""
        return tuple(exclusion.hospital_id for exclusion in self.exclusions)


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of a round: who is in them, their means (g, d), and for each hospital's row the place of its group."""

    members: tuple[tuple[str, ...], ...]
    means: np.ndarray
    place_of: np.ndarray

    @staticmethod
    def of(deltas: np.ndarray, rows: tuple[tuple[str, ...], ...]) -> Groups:
        """From a row for every hospital, its group's mean, and the group's members."""
        members = tuple(dict.fromkeys(rows))
        first = [rows.index(group) for group in members]
        return Groups(members, deltas[first], np.array([members.index(group) for group in rows]))

    @property
    def sizes(self) -> np.ndarray:
        """How many hospitals are in each, (g,)."""
        return np.array([len(group) for group in self.members])

    def holding(self, hospital_ids: Sequence[str]) -> np.ndarray:
        """Which groups hold one of these, (g,) bool."""
        return np.array([not set(group).isdisjoint(hospital_ids) for group in self.members])


@dataclass(frozen=True)
class GroupTested(Aggregator):
    """Any rule over means of groups, and a reputation of single hospitals inferred from the groups that they were in.

    A group is tested before the rule sees it: its length, grown by the root of its size, against that of clean groups,
    and its direction against the root update, where the rule has one. What fails does not reach the rule; what passes
    is cut to ``CEILING`` root updates. What the rule then thinks of a group (its trust, or whether it shut it out)
    completes the test. :class:`NoisyGroupTesting` infers from all tests who lies; who probably does is excluded, and
    kept apart from the others but for a probation now and then (:mod:`~fedplatform.federated.secure.exclusion`).

    With OptiGradTrust behind, reputation is this one and not its own, which would be of groups that never come again.
    """

    rule: Aggregator
    testing: NoisyGroupTesting = field(default_factory=NoisyGroupTesting)

    @property
    def needs_root(self) -> bool:  # type: ignore[override]  # of an object and not of the class
        """Whether the rule behind compares with the server's own update."""
        return self.rule.needs_root

    @property
    def memory_kinds(self) -> tuple[type, ...]:  # type: ignore[override]
        """What its memory is made of, for checkpoints."""
        return (GroupMemory, GroupTest, Exclusion, Seating, *self.rule.memory_kinds)

    def without(self, attack: str) -> Self:
        """The same with the rule behind never taught this attack."""
        return replace(self, rule=self.rule.without(attack))

    def forgetting(self, memory: object, hospital_id: str) -> object:
        """The memory without its name. What a test found is of its whole group: there it is an unnamed member."""
        if not isinstance(memory, GroupMemory):
            return memory
        taken = {name for test in memory.tests for name in test.members}
        unnamed = next(name for number in range(len(taken) + 1) if (name := f"withdrawn {number + 1}") not in taken)
        tests = (
            replace(test, members=tuple(unnamed if name == hospital_id else name for name in test.members))
            for test in memory.tests
        )
        return replace(
            memory,
            tests=tuple(tests),
            exclusions=tuple(excluded for excluded in memory.exclusions if excluded.hospital_id != hospital_id),
            seating=memory.seating.renamed({name: name for name in taken | {*memory.shut_out} if name != hospital_id}),
            inner=self.rule.forgetting(memory.inner, hospital_id),
        )

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        if not evidence.groups:
            raise ValueError("GroupTested judges groups, got updates of single hospitals")
        memory = evidence.memory if isinstance(evidence.memory, GroupMemory) else GroupMemory()
        groups = Groups.of(deltas, evidence.groups)
        apart = groups.holding(memory.shut_out)
        lengths, cosines = self._measure(groups, evidence)
        recent = (*memory.lengths[1 - REFERENCE_ROUNDS :], tuple(lengths[~apart].tolist()))
        times = lengths / _reference(recent, size=float(groups.sizes.mean()))
        too_long = ramp(times, LONG)
        sound = (1 - too_long) * (1 - ramp(-cosines, BACKWARDS))

        number = evidence.round_number
        before = tuple(test for test in memory.tests if test.round_number > number - KEPT_ROUNDS)
        suspicion = judge_hospitals(
            self.testing, (*before, *_tests(groups, sound, number)), memory.exclusions, now=number
        ).suspicion
        clean = np.array([np.prod([1 - suspicion[name] for name in group]) for group in groups.members])
        passing = (sound >= REFUSED) & ~apart
        if passing.any():  # nor does a group count whose chance to be clean is less than half the best one's
            passing &= clean >= clean[passing].max() / 2
        judged = self._judge(groups, np.flatnonzero(passing), lengths, evidence, memory)

        sound = sound * judged.sound
        tests = (*before, *_tests(groups, sound, number))
        verdict = judge_hospitals(self.testing, tests, memory.exclusions, now=number)
        seating = next_seating(self.testing, tests, verdict.exclusions, now=number + 1)
        after = GroupMemory(tests, recent, verdict.exclusions, judged.memory, seating)
        said = [_in_words(*severities) for severities in zip(times, too_long, cosines, strict=True)]
        return Aggregate(
            delta=judged.delta,
            weights=(judged.weights / groups.sizes)[groups.place_of],
            hostile=np.array([name in after.shut_out for name in evidence.hospital_ids]),
            judgements=tuple(
                replace(
                    judged.judgements[place],
                    trust=float(sound[place]),
                    reputation=1 - verdict.suspicion[name],
                    reason=_reason(
                        name, said[place] or judged.judgements[place].reason, memory.shut_out, after.shut_out
                    ),
                )
                for name, place in zip(evidence.hospital_ids, groups.place_of, strict=True)
            ),
            memory=after,
        )

    @staticmethod
    def _measure(groups: Groups, evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
        """Lengths (g,), in root updates where there is one, and cosines (g,) to it, else 1.

        The mean of m updates in unlike directions is shorter by the root of m; grown by it, groups of different sizes
        are comparable.
        """
        lengths = np.sqrt(squared_norms(groups.means) * groups.sizes)
        if evidence.root_delta is None:
            return lengths, np.ones(len(lengths))
        cosines, _ = cosines_to(groups.means, evidence.root_delta)
        return lengths / norm_of(evidence.root_delta), cosines

    def _judge(
        self, groups: Groups, rows: np.ndarray, lengths: np.ndarray, evidence: Evidence, memory: GroupMemory
    ) -> Judged:
        """What the rule makes of the groups in ``rows``."""
        n = len(groups.members)
        weights, sound, judgements = np.zeros(n), np.ones(n), [Judgement()] * n
        if not len(rows):
            return Judged(np.zeros(groups.means.shape[1], dtype=np.float32), weights, sound, judgements, memory.inner)
        means = groups.means[rows]
        if evidence.root_delta is not None:
            means = means * (CEILING / np.maximum(lengths[rows], CEILING)).astype(np.float32)[:, None]
        behind = replace(
            evidence,
            hospital_ids=tuple("+".join(groups.members[row]) for row in rows),
            num_examples=groups.sizes[rows],
            memory=memory.inner,
            groups=(),
        )
        aggregate = _without_reputation(self.rule).aggregate(means, behind)
        weights[rows] = aggregate.weights
        sound[rows] = 1.0 - aggregate.hostile
        if aggregate.judgements:
            for row, judgement in zip(rows, aggregate.judgements, strict=True):
                sound[row], judgements[row] = judgement.trust, judgement
        inner = aggregate.memory
        if isinstance(inner, TrustMemory):
            inner = replace(inner, standings={}, shapley={})
        return Judged(aggregate.delta, weights, sound, judgements, inner)


@dataclass(frozen=True, eq=False)
class Judged:
    """The step of the rule behind, and for each of g groups its weight, soundness and judgement."""

    delta: np.ndarray
    weights: np.ndarray
    sound: np.ndarray
    judgements: list[Judgement]
    memory: object


def _without_reputation(rule: Aggregator) -> Aggregator:
    return replace(rule, reputation_power=0.0, smoothing=1.0) if isinstance(rule, OptiGradTrust) else rule


def _reference(lengths: Sequence[Sequence[float]], *, size: float) -> float:
    """The length of a clean group, from those of this round and the last ones.

    It is no median: where every fifth hospital lies, two groups of five in three hold an attacker. It is the median of
    as many as are clean then, as if those were the shortest.
    """
    known = [length for of_round in lengths for length in of_round]
    return (float(np.quantile(known, (1 - FEARED) ** size / 2)) if known else 0.0) or 1.0


def _tests(groups: Groups, sound: np.ndarray, number: int) -> tuple[GroupTest, ...]:
    pairs = zip(groups.members, sound.tolist(), strict=True)
    return tuple(GroupTest(number, members, soundness) for members, soundness in pairs)


def _in_words(times: float, too_long: float, cosine: float) -> str:
    words = []
    if too_long > 0:
        words.append(f"its group is {times:.1f} times as long as sound ones")
    if cosine <= 0:
        words.append("its group points away from the root update")
    return "; ".join(words)


def _reason(name: str, words: str, before: Sequence[str], after: Sequence[str]) -> str:
    if name in after:
        return words if name in before else f"excluded: it was in too many spoiled groups; {words}".rstrip("; ")
    return "reinstated: its groups have been sound again" if name in before else words
