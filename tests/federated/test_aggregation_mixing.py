"""Mixing in front of a rule: what the rule is told, and how its verdict comes back to the hospitals."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from aggregation_rounds import a_round, with_attackers

from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.federated.aggregation import (
    Aggregator,
    Bucketing,
    Krum,
    Mean,
    Median,
    Mixed,
    NearestNeighbourMixing,
    NormClipping,
    TrimmedMean,
    WeightedMean,
    combine_statistics,
)


@dataclass(frozen=True)
class Listening(Aggregator):
    """A plain mean that remembers what it was told."""

    heard: list[Evidence] = field(default_factory=list)

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        self.heard.append(evidence)
        return Mean()(deltas, evidence)


@pytest.mark.parametrize("n", [8, 9])
def test_buckets_hold_every_hospital_once_and_average_it(n: int) -> None:
    case = a_round(0, n=n)
    case.evidence.generator.manual_seed(0)
    mixed, matrix = Bucketing(size=2)(case.deltas, case.evidence)
    members = matrix > 0
    assert mixed.shape == ((n + 1) // 2, case.deltas.shape[1])
    assert np.array_equal(members.sum(axis=0), np.ones(n))
    np.testing.assert_allclose(matrix.sum(axis=1), np.ones(len(matrix)), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(mixed, matrix.astype(np.float32) @ case.deltas, rtol=1.3e-6, atol=1e-5)


def test_buckets_are_drawn_from_the_rounds_generator() -> None:
    case = a_round(1, n=20)
    drawn = [Bucketing()(case.deltas, case.evidence)[1] for _ in range(2)]
    assert not np.array_equal(drawn[0], drawn[1])


def test_a_bucket_claims_what_its_hospitals_claim_together() -> None:
    case, rule = a_round(2, n=9), Listening()
    case.apply(Mixed((Bucketing(size=2),), rule))
    told = rule.heard[0]
    claims = dict(zip(case.evidence.hospital_ids, case.evidence.num_examples.tolist(), strict=True))
    assert len(told.hospital_ids) == len(told.num_examples) == 5
    for bucket, claim in zip(told.hospital_ids, told.num_examples.tolist(), strict=True):
        assert claim == sum(claims[hospital] for hospital in bucket.split("+"))
    assert told.root_delta is case.evidence.root_delta
    assert told.previous_delta is case.evidence.previous_delta


def test_the_mean_of_neighbourhoods_counts_a_hospital_by_the_neighbourhoods_it_is_in() -> None:
    case = with_attackers(a_round(3, n=11, f=2))
    mixer = NearestNeighbourMixing(f=2)
    weights = case.apply(Mixed((mixer,), Mean())).weights
    np.testing.assert_allclose(weights, mixer(case.deltas, case.evidence)[1].mean(axis=0), rtol=1e-7, atol=1e-7)
    assert weights[:2].max() < weights[2:].min()


def test_weights_are_those_with_which_the_hospitals_make_up_the_aggregate() -> None:
    case = a_round(4, n=11, d=5000)
    for mixers in ((NearestNeighbourMixing(f=2),), (Bucketing(size=3),), (NearestNeighbourMixing(f=2), Bucketing())):
        aggregate = case.apply(Mixed(mixers, Krum(f=0)))
        made_up = aggregate.weights.astype(np.float32) @ case.deltas
        np.testing.assert_allclose(aggregate.delta, made_up, rtol=1e-4, atol=1e-4)


def test_clipping_alone_turns_the_mean_into_a_rule_that_scaling_cannot_break() -> None:
    case = with_attackers(a_round(5))
    assert (
        np.linalg.norm(case.apply(Mixed((NormClipping(),), Mean())).delta)
        < np.linalg.norm(case.deltas[2:], axis=1).max()
    )


def test_both_hospitals_of_a_bucket_that_is_shut_out_are_shut_out() -> None:
    case = with_attackers(a_round(6, n=14, f=1))
    aggregate = case.apply(Mixed((Bucketing(size=2),), Krum(f=1)))
    assert aggregate.hostile[0]
    assert aggregate.hostile.sum() == 2


def test_a_rule_behind_no_mixer_is_the_rule() -> None:
    case = a_round(7)
    assert np.array_equal(case.apply(Mixed((), TrimmedMean(f=2))).delta, case.apply(TrimmedMean(f=2)).delta)


def test_statistics_follow_the_weights_of_a_mean_and_the_median_of_every_other_rule() -> None:
    case = a_round(8, n=5)
    statistics = np.array([[1.0], [2.0], [3.0], [4.0], [1e6]], np.float32)
    case.evidence.num_examples[:] = [10, 10, 10, 20, 10]
    for rule, expected in (
        (Mean(), 200_002.0),
        (WeightedMean(), 1_000_014 / 6),
        (Median(), 3.0),
        (Krum(f=1), 3.0),
        (Mixed((NormClipping(),), Mean()), 3.0),
    ):
        combined = combine_statistics(rule, statistics, aggregate=case.apply(rule))
        assert combined.dtype == np.float32
        np.testing.assert_allclose(combined, [expected], rtol=1.3e-6, atol=1e-5)
