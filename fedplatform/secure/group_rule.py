"""A rule that sees groups: it judges their means, and infers from many rounds who in them lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fedplatform.aggregation import Aggregator
from fedplatform.aggregation.geometry import cosines_to, squared_norms
from fedplatform.messages import Aggregate, Evidence, Judgement
from fedplatform.secure.suspicion import GroupTest, NoisyGroupTesting
from fedplatform.trust import OptiGradTrust
from fedplatform.trust.anomaly import ramp
from fedplatform.trust.optigradtrust import TrustMemory

LONG = (1.6, 2.4)  # times the reference length: where a group begins to be too long, and where it is beyond doubt
BACKWARDS = (0.0, 0.1)  # minus the cosine to the root update
REFERENCE_ROUNDS = 3
KEPT_ROUNDS = 100  # at a memory of .98 an older test weighs less than a seventh
REFUSED = 0.2  # below this soundness a group does not reach the rule
EXCLUDE, REINSTATE = 0.8, 0.4  # of the probability to lie; apart, so that nobody flickers between them


@dataclass(frozen=True)
class GroupMemory:
    """What is remembered over rounds: tests, lengths of groups, who is shut out, and the memory of the rule behind."""

    tests: tuple[GroupTest, ...] = ()
    lengths: tuple[tuple[float, ...], ...] = ()
    shut_out: frozenset[str] = frozenset()
    inner: object = None


@dataclass(frozen=True)
class GroupTested:
    """A rule for means of groups, and a reputation of single hospitals inferred from the groups they were in."""

    rule: Aggregator
    testing: NoisyGroupTesting = field(default_factory=NoisyGroupTesting)

    @property
    def needs_root(self) -> bool:
        """Whether the rule behind compares with the server's own update."""
        return bool(getattr(self.rule, "needs_root", False))

    def __call__(self, deltas: torch.Tensor, evidence: Evidence) -> Aggregate:
        memory = evidence.memory if isinstance(evidence.memory, GroupMemory) else GroupMemory()
        groups = tuple(dict.fromkeys(evidence.groups))
        group_of = np.array([groups.index(group) for group in evidence.groups])
        means = deltas[[evidence.groups.index(group) for group in groups]]
        sizes = np.array([len(group) for group in groups])
        apart = np.array([set(group) <= memory.shut_out for group in groups])

        lengths = np.sqrt(squared_norms(means) * sizes)
        cosines = np.full(len(groups), np.nan)
        if evidence.root_delta is not None:
            cosines, _ = cosines_to(means, evidence.root_delta)
            lengths = lengths / float(torch.linalg.vector_norm(evidence.root_delta, dtype=torch.float64))
        recent = (*memory.lengths[-REFERENCE_ROUNDS + 1 :], tuple(lengths[~apart].tolist()))
        reference = float(np.quantile(np.concatenate([np.array(known) for known in recent]), 0.25)) if recent else 1.0
        too_long = ramp(lengths / (reference or 1.0), LONG)
        backwards = np.nan_to_num(ramp(-cosines, BACKWARDS))
        sound = (1 - too_long) * (1 - backwards)

        number = evidence.round_number
        before = tuple(test for test in memory.tests if test.round_number > number - KEPT_ROUNDS)
        suspicion = self.testing((*before, *self._tests(number, groups, sound)), now=number)
        chances = np.array([np.prod([1 - suspicion[name] for name in group]) for group in groups])
        passing = (sound >= REFUSED) & ~apart
        if passing.any():
            passing &= chances >= 0.5 * chances[passing].max()
        aggregate, inner_sound, judged = self._step(means, groups, sizes, passing, evidence, memory)

        sound = sound * inner_sound
        tests = (*before, *self._tests(number, groups, sound))
        suspicion = self.testing(tests, now=number)
        shut_out = frozenset(
            name for name, chance in suspicion.items() if chance > (REINSTATE if name in memory.shut_out else EXCLUDE)
        )
        weights = (aggregate.weights.numpy() / sizes)[group_of]
        names = evidence.hospital_ids
        return Aggregate(
            delta=aggregate.delta,
            weights=torch.from_numpy(weights),
            hostile=torch.tensor([name in shut_out for name in names]),
            judgements=tuple(
                replace(judged[group], trust=float(sound[group]), reputation=1 - suspicion[name])
                for name, group in zip(names, group_of, strict=True)
            ),
            memory=GroupMemory(tests, recent, shut_out, aggregate.memory),
        )

    def _step(self, means, groups, sizes, passing, evidence, memory):
        n = len(groups)
        sound = np.ones(n)
        judged = [Judgement()] * n
        weights, hostile = np.zeros(n), np.ones(n, bool)
        if not passing.any():
            return Aggregate(torch.zeros(means.shape[1]), torch.from_numpy(weights), torch.from_numpy(hostile), memory=memory.inner), sound, judged
        rows = np.flatnonzero(passing)
        behind = replace(
            evidence,
            hospital_ids=tuple("+".join(groups[row]) for row in rows),
            num_examples=torch.from_numpy(sizes[rows]),
            memory=memory.inner,
            groups=(),
        )
        rule = self.rule
        if isinstance(rule, OptiGradTrust):
            rule = replace(rule, reputation_power=0.0, smoothing=1.0)
        aggregate = rule(means[rows], behind)
        inner = aggregate.memory
        if isinstance(inner, TrustMemory):
            inner = replace(inner, standings={}, shapley={})
        weights[rows] = aggregate.weights.numpy()
        if aggregate.judgements:
            sound[rows] = [judgement.trust for judgement in aggregate.judgements]
            for row, judgement in zip(rows, aggregate.judgements, strict=True):
                judged[row] = judgement
        else:
            sound[rows] = 1.0 - aggregate.hostile.numpy()
        return replace(aggregate, weights=torch.from_numpy(weights), memory=inner), sound, judged

    @staticmethod
    def _tests(number: int, groups: Sequence[tuple[str, ...]], sound: np.ndarray) -> tuple[GroupTest, ...]:
        return tuple(GroupTest(number, group, float(value)) for group, value in zip(groups, sound, strict=True))
