"""One contract for the whole family of aggregation rules, with and without mixing in front."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from aggregation_rounds import Round, a_round, with_attackers
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from fedplatform.federated.aggregation import (
    FLAME,
    MIXERS,
    RULES,
    Aggregator,
    Bucketing,
    Bulyan,
    CenteredClipping,
    DnC,
    FLTrust,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    Mixed,
    MultiKrum,
    NearestNeighbourMixing,
    NormClipping,
    SignGuard,
    TrimmedMean,
    WeightedMean,
)


@dataclass(frozen=True)
class Contract:
    """What is promised of a rule; where a promise is missing, the reason stands beside it in ``FAMILY``."""

    make: Callable[[int], Aggregator]
    survives_attackers: bool = True
    judges: bool = False
    moves_along: bool = True
    ignores_order: bool = True


FAMILY = {
    # A mean has no majority to hold on to.
    "mean": Contract(lambda f: Mean(), survives_attackers=False),
    "weighted_mean": Contract(lambda f: WeightedMean(), survives_attackers=False),
    "median": Contract(lambda f: Median()),
    "trimmed_mean": Contract(TrimmedMean),
    "krum": Contract(Krum, judges=True),
    "multi_krum": Contract(MultiKrum, judges=True),
    "bulyan": Contract(Bulyan, judges=True),
    "geometric_median": Contract(lambda f: GeometricMedian()),
    "centered_clipping": Contract(lambda f: CenteredClipping()),
    # Cosines and norms are taken from zero, so rules and mixers that use them do not move along with the updates.
    "fltrust": Contract(lambda f: FLTrust(), judges=True, moves_along=False),
    "dnc": Contract(DnC, judges=True),
    "signguard": Contract(lambda f: SignGuard(), judges=True, moves_along=False),
    "flame": Contract(lambda f: FLAME(noise=0.0), judges=True, moves_along=False),
    "norm_clip + mean": Contract(lambda f: Mixed((NormClipping(),), Mean()), moves_along=False),
    "nnm + trimmed_mean": Contract(lambda f: Mixed((NearestNeighbourMixing(f),), TrimmedMean(f))),
    "nnm + krum": Contract(lambda f: Mixed((NearestNeighbourMixing(f),), Krum(f)), judges=True),
    "norm_clip + nnm + median": Contract(
        lambda f: Mixed((NormClipping(), NearestNeighbourMixing(f)), Median()), moves_along=False
    ),
    # Who shares a bucket depends on the order in which the hospitals stand.
    "bucketing + geometric_median": Contract(lambda f: Mixed((Bucketing(),), GeometricMedian()), ignores_order=False),
}

INFEASIBLE = [
    (Mean(), 0, "Mean needs n >= 1, got n=0"),
    (Median(), 0, "Median needs n >= 1, got n=0"),
    (TrimmedMean(f=3), 6, "TrimmedMean needs n > 2f, got n=6, f=3"),
    (Krum(f=1), 4, r"Krum needs n >= 2f \+ 3, got n=4, f=1"),
    (Krum(f=-1), 4, "Krum needs f >= 0, got n=4, f=-1"),
    (MultiKrum(f=2), 6, r"MultiKrum needs n >= 2f \+ 3, got n=6, f=2"),
    (MultiKrum(f=1, m=5), 5, "MultiKrum needs 1 <= m <= n - f, got n=5, f=1, m=5"),
    (Bulyan(f=1), 6, r"Bulyan needs n >= 4f \+ 3, got n=6, f=1"),
    (DnC(f=2), 4, "DnC needs n > 2f, got n=4, f=2"),
    (FLAME(), 1, "FLAME needs n >= 2, got n=1"),
    (Mixed((NearestNeighbourMixing(f=3),), Mean()), 6, "NearestNeighbourMixing needs n > 2f, got n=6, f=3"),
    (Mixed((Bucketing(size=2),), Krum(f=1)), 8, r"Krum needs n >= 2f \+ 3, got n=4, f=1"),
]


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    f = draw(st.integers(1, 2))
    n = draw(st.integers(4 * f + 3, 14))
    return a_round(draw(st.integers(0, 2**32 - 1)), n=n, f=f, d=draw(st.integers(20, 80)))


few = settings(deadline=None, max_examples=12, derandomize=True)
whole_family = pytest.mark.parametrize("name", FAMILY)


def those_that(promise: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for name, contract in FAMILY.items() if getattr(contract, promise)])


def near(delta: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-4)


def test_the_contract_covers_every_rule_and_every_mixer() -> None:
    assert {*RULES, *MIXERS} == {part for name in FAMILY for part in name.split(" + ")}
    assert all(isinstance(contract.make(1), Aggregator) for contract in FAMILY.values())


@whole_family
@few
@given(case=rounds())
def test_weights_are_shares_and_nothing_is_written_to(name: str, case: Round) -> None:
    case = with_attackers(case)
    given_deltas, given_evidence = case.deltas.clone(), replace(case.evidence, previous_delta=case.root.clone())
    given_evidence.previous_delta.copy_(case.evidence.previous_delta)
    aggregate = case.apply(FAMILY[name].make(case.f))
    n, d = case.deltas.shape
    assert aggregate.delta.shape == (d,)
    assert aggregate.delta.dtype == torch.float32
    assert aggregate.weights.shape == aggregate.hostile.shape == (n,)
    assert aggregate.weights.dtype == torch.float64
    assert aggregate.hostile.dtype == torch.bool
    assert bool((aggregate.weights >= 0).all())
    assert aggregate.weights.sum().item() == pytest.approx(1.0)
    assert not bool(aggregate.weights[aggregate.hostile].any())
    assert torch.equal(case.deltas, given_deltas)
    assert torch.equal(case.evidence.previous_delta, given_evidence.previous_delta)


@those_that("ignores_order")
@few
@given(case=rounds())
def test_the_order_of_the_hospitals_does_not_matter(name: str, case: Round) -> None:
    order = torch.randperm(len(case.deltas), generator=torch.Generator().manual_seed(len(case.deltas)))
    shuffled = replace(
        case,
        deltas=case.deltas[order],
        evidence=replace(case.evidence, num_examples=case.evidence.num_examples[order]),
    )
    rule = FAMILY[name].make(case.f)
    aggregate, again = case.apply(rule), shuffled.apply(rule)
    near(again.delta, aggregate.delta)
    near(again.weights, aggregate.weights[order])
    assert torch.equal(again.hostile, aggregate.hostile[order])


@those_that("moves_along")
@few
@given(case=rounds())
def test_a_common_shift_of_all_updates_shifts_the_aggregate(name: str, case: Round) -> None:
    shift = 10 * case.root
    shifted = replace(
        case,
        deltas=case.deltas + shift,
        evidence=replace(case.evidence, previous_delta=case.evidence.previous_delta + shift),
    )
    rule = FAMILY[name].make(case.f)
    near(shifted.apply(rule).delta, case.apply(rule).delta + shift)


@whole_family
@few
@given(case=rounds())
def test_hospitals_that_agree_are_taken_at_their_word(name: str, case: Round) -> None:
    agreed = replace(case, deltas=case.root.repeat(len(case.deltas), 1))
    near(agreed.apply(FAMILY[name].make(case.f)).delta, case.root)


@those_that("survives_attackers")
@few
@given(case=rounds())
def test_a_minority_of_attackers_cannot_carry_the_aggregate_away(name: str, case: Round) -> None:
    honest = case.deltas[case.f :]
    centre = honest.mean(dim=0)
    farthest = torch.linalg.vector_norm(honest - centre, dim=1).max() + torch.linalg.vector_norm(centre)
    aggregate = with_attackers(case).apply(FAMILY[name].make(case.f))
    assert torch.linalg.vector_norm(aggregate.delta - centre) <= 2 * farthest
    assert aggregate.weights[: case.f].sum() < 1e-4


@pytest.mark.parametrize("name", [name for name, contract in FAMILY.items() if not contract.survives_attackers])
def test_the_mean_does_not_survive_one_attacker(name: str) -> None:
    case = with_attackers(a_round(0, f=1))
    assert torch.linalg.vector_norm(case.apply(FAMILY[name].make(1)).delta) > 1e4


@those_that("judges")
@few
@given(case=rounds())
def test_a_judging_rule_names_the_attackers(name: str, case: Round) -> None:
    assert bool(with_attackers(case).apply(FAMILY[name].make(case.f)).hostile[: case.f].all())


@pytest.mark.parametrize("name", [name for name, contract in FAMILY.items() if not contract.judges])
def test_a_rule_that_judges_nobody_calls_nobody_hostile(name: str) -> None:
    assert not bool(with_attackers(a_round(1)).apply(FAMILY[name].make(2)).hostile.any())


@pytest.mark.parametrize(("rule", "n", "message"), INFEASIBLE)
def test_too_few_hospitals_are_refused_with_the_numbers(rule: Aggregator, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        a_round(0, n=n).apply(rule)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedMean(cap=0.0), "cap=0.0"),
        (lambda: CenteredClipping(radius=-1.0), "radius=-1.0"),
        (lambda: CenteredClipping(steps=0), "steps=0"),
        (lambda: FLAME(noise=-0.1), "noise=-0.1"),
        (lambda: Bucketing(size=0), "size=0"),
    ],
)
def test_a_setting_out_of_range_is_refused_when_it_is_made(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_weighted_mean_refuses_claims_that_are_no_counts() -> None:
    case = a_round(2, n=3)
    case.evidence.num_examples.copy_(torch.tensor([5, -1, 3]))
    with pytest.raises(ValueError, match=r"counts >= 0 .* got \[5, -1, 3\]"):
        case.apply(WeightedMean())


def test_fltrust_says_in_one_line_that_it_needs_a_root_update() -> None:
    case = a_round(3)
    with pytest.raises(ValueError, match=r"FLTrust needs evidence\.root_delta"):
        FLTrust()(case.deltas, replace(case.evidence, root_delta=None))


def test_fltrust_stands_still_where_it_trusts_nobody() -> None:
    case = a_round(4)
    aggregate = replace(case, deltas=-case.root.repeat(5, 1)).apply(FLTrust())
    assert not bool(aggregate.delta.any())
    assert not bool(aggregate.weights.any())
    assert bool(aggregate.hostile.all())


def test_bulyan_does_not_let_attackers_who_agree_vouch_for_each_other() -> None:
    case = with_attackers(a_round(5, n=11, f=2))
    assert torch.equal(case.apply(Bulyan(f=2)).weights[:2], torch.zeros(2, dtype=torch.float64))


@whole_family
def test_the_same_round_gives_the_same_bits_on_any_number_of_threads(name: str) -> None:
    case, rule = a_round(6, n=100, f=9, d=5000), FAMILY[name].make(9)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        with threadpool_limits(limits=count, user_api="blas"):
            results.append(case.apply(rule))
    torch.set_num_threads(threads)
    for result in results[1:]:
        assert torch.equal(result.delta, results[0].delta)
        assert torch.equal(result.weights, results[0].weights)
