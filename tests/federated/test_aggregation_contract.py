"""One contract for the whole family of aggregation rules, with and without mixing in front."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from aggregation_rounds import Round, a_round, with_attackers
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from fedplatform.core.coordinates import evenly_spaced, random_columns
from fedplatform.core.messages import Layer
from fedplatform.core.vectors import combine, shrinkage
from fedplatform.federated.aggregation import (
    FLAME,
    LASA,
    MIXERS,
    RULES,
    Aggregator,
    AlignIns,
    Bucketing,
    Bulyan,
    CenteredClipping,
    DeepSight,
    DnC,
    FLDetector,
    FLTrust,
    FoolsGold,
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
    """What is promised of a rule; where a promise is missing, the reason stands beside it in ``FAMILY``.

    None promises neither a thing nor its opposite.
    """

    make: Callable[[int], Aggregator]
    survives_attackers: bool | None = True
    judges: bool | None = False
    moves_along: bool = True
    ignores_order: bool = True
    takes_at_word: bool = True


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
    "rfa": Contract(lambda f: RULES["rfa"]()),
    "centered_clipping": Contract(lambda f: CenteredClipping()),
    # Cosines and norms are taken from zero, so rules and mixers that use them do not move along with the updates.
    "fltrust": Contract(lambda f: FLTrust(), judges=True, moves_along=False),
    "dnc": Contract(DnC, judges=True),
    "signguard": Contract(lambda f: SignGuard(), judges=True, moves_along=False),
    "flame": Contract(lambda f: FLAME(noise=0.0), judges=True, moves_along=False),
    # Against attackers who send alike: one alone counts in full.
    "foolsgold": Contract(lambda f: FoolsGold(), survives_attackers=False, judges=None, moves_along=False),
    # It judges from the third round on, and these are first ones.
    "fldetector": Contract(lambda f: FLDetector(), survives_attackers=False),
    # Clipped, so that nobody carries it far, and made against backdoors: it looks for narrow labels, not for far ones.
    "deepsight": Contract(lambda f: DeepSight(), survives_attackers=None, judges=None, moves_along=False),
    # A layer of a few coordinates cannot tell; and what is small in all updates is left out of the step.
    "lasa": Contract(lambda f: LASA(), survives_attackers=None, judges=None, moves_along=False, takes_at_word=False),
    "alignins": Contract(lambda f: AlignIns(), judges=True, moves_along=False),
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
    (TrimmedMean(f=1.5), 6, r"TrimmedMean needs a whole number f, got f=1.5"),
    (MultiKrum(f=2), 6, r"MultiKrum needs n >= 2f \+ 3, got n=6, f=2"),
    (MultiKrum(f=1, m=5), 5, "MultiKrum needs 1 <= m <= n - f, got n=5, f=1, m=5"),
    (Bulyan(f=1), 6, r"Bulyan needs n >= 4f \+ 3, got n=6, f=1"),
    (DnC(f=2), 4, "DnC needs n > 2f, got n=4, f=2"),
    (FLAME(), 1, "FLAME needs n >= 2, got n=1"),
    (FoolsGold(), 0, "FoolsGold needs n >= 1, got n=0"),
    (FLDetector(), 0, "FLDetector needs n >= 1, got n=0"),
    (LASA(), 0, "LASA needs n >= 1, got n=0"),
    (AlignIns(), 0, "AlignIns needs n >= 1, got n=0"),
    (DeepSight(), 1, "DeepSight needs n >= 2, got n=1"),
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


def near(delta: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(delta, expected, rtol=1e-4, atol=1e-4)


def test_the_contract_covers_every_rule_and_every_mixer() -> None:
    assert {*RULES, *MIXERS} == {part for name in FAMILY for part in name.split(" + ")}
    assert all(isinstance(contract.make(1), Aggregator) for contract in FAMILY.values())


@whole_family
@few
@given(case=rounds())
def test_weights_are_shares_and_nothing_is_written_to(name: str, case: Round) -> None:
    case = with_attackers(case)
    given_deltas, given_evidence = (
        case.deltas.copy(),
        replace(case.evidence, previous_delta=case.evidence.previous_delta.copy()),
    )
    aggregate = case.apply(FAMILY[name].make(case.f))
    n, d = case.deltas.shape
    assert aggregate.delta.shape == (d,)
    assert aggregate.delta.dtype == np.float32
    assert aggregate.weights.shape == aggregate.hostile.shape == (n,)
    assert aggregate.weights.dtype == np.float64
    assert aggregate.hostile.dtype == np.bool_
    assert bool((aggregate.weights >= 0).all())
    assert aggregate.weights.sum().item() == pytest.approx(1.0)
    assert not bool(aggregate.weights[aggregate.hostile].any())
    assert np.array_equal(case.deltas, given_deltas)
    assert np.array_equal(case.evidence.previous_delta, given_evidence.previous_delta)


@those_that("ignores_order")
@few
@given(case=rounds())
def test_the_order_of_the_hospitals_does_not_matter(name: str, case: Round) -> None:
    order = np.random.default_rng(len(case.deltas)).permutation(len(case.deltas))
    shuffled = replace(
        case,
        deltas=case.deltas[order],
        evidence=replace(case.evidence, num_examples=case.evidence.num_examples[order]),
    )
    rule = FAMILY[name].make(case.f)
    aggregate, again = case.apply(rule), shuffled.apply(rule)
    near(again.delta, aggregate.delta)
    near(again.weights, aggregate.weights[order])
    assert np.array_equal(again.hostile, aggregate.hostile[order])


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


@those_that("takes_at_word")
@few
@given(case=rounds())
def test_hospitals_that_agree_are_taken_at_their_word(name: str, case: Round) -> None:
    agreed = replace(case, deltas=np.tile(case.root, (len(case.deltas), 1)))
    near(agreed.apply(FAMILY[name].make(case.f)).delta, case.root)


@those_that("survives_attackers")
@few
@given(case=rounds())
def test_a_minority_of_attackers_cannot_carry_the_aggregate_away(name: str, case: Round) -> None:
    honest = case.deltas[case.f :]
    centre = honest.mean(axis=0)
    farthest = np.linalg.norm(honest - centre, axis=1).max() + np.linalg.norm(centre)
    aggregate = with_attackers(case).apply(FAMILY[name].make(case.f))
    assert np.linalg.norm(aggregate.delta - centre) <= 2 * farthest
    assert aggregate.weights[: case.f].sum() < 1e-4


@pytest.mark.parametrize("name", [name for name, contract in FAMILY.items() if contract.survives_attackers is False])
def test_the_mean_does_not_survive_one_attacker(name: str) -> None:
    case = with_attackers(a_round(0, f=1))
    assert np.linalg.norm(case.apply(FAMILY[name].make(1)).delta) > 1e4


@those_that("judges")
@few
@given(case=rounds())
def test_a_judging_rule_names_the_attackers(name: str, case: Round) -> None:
    assert bool(with_attackers(case).apply(FAMILY[name].make(case.f)).hostile[: case.f].all())


@pytest.mark.parametrize("name", [name for name, contract in FAMILY.items() if contract.judges is False])
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
        (lambda: FoolsGold(confidence=0), "confidence=0"),
        (lambda: FLDetector(window=0), "window=0"),
        (lambda: LASA(sparsity=1.0), "sparsity=1.0"),
        (lambda: LASA(sign_limit=0.0), "2.0 and 0.0"),
        (lambda: AlignIns(share=0.0), "share=0.0"),
        (lambda: AlignIns(cosine_limit=-1.0), "-1.0 and 1.0"),
        (lambda: DeepSight(smallest=1), "smallest=1"),
        (lambda: DeepSight(tolerated=0.0), "tolerated=0.0"),
    ],
)
def test_a_setting_out_of_range_is_refused_when_it_is_made(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_weighted_mean_refuses_claims_that_are_no_counts() -> None:
    case = a_round(2, n=3)
    case.evidence.num_examples[:] = [5, -1, 3]
    with pytest.raises(ValueError, match=r"counts >= 0 .* got \[5, -1, 3\]"):
        case.apply(WeightedMean())


@pytest.mark.parametrize("rule", [LASA(), DeepSight()])
def test_a_rule_that_looks_at_layers_says_that_it_needs_them(rule: Aggregator) -> None:
    case = a_round(3)
    with pytest.raises(ValueError, match=r"needs evidence\.layers of 60 coordinates in all, got 0"):
        rule(case.deltas, replace(case.evidence, layers=()))


def test_deepsight_and_alignins_say_what_else_they_need() -> None:
    case = a_round(3)
    with pytest.raises(ValueError, match=r"needs a last layer \(classes, features\) with a bias"):
        DeepSight()(case.deltas, replace(case.evidence, layers=(Layer("all", (60,)),)))
    with pytest.raises(ValueError, match=r"AlignIns needs evidence\.weights"):
        AlignIns()(case.deltas, replace(case.evidence, weights=None))


@pytest.mark.parametrize("rule", [LASA(), DeepSight()])
def test_a_clipped_rule_goes_no_further_than_the_median_update(rule: Aggregator) -> None:
    case = with_attackers(a_round(1))
    median = np.median(np.linalg.norm(case.deltas, axis=1))
    assert np.linalg.norm(case.apply(rule).delta) <= 1.0001 * median


def test_fltrust_says_in_one_line_that_it_needs_a_root_update() -> None:
    case = a_round(3)
    with pytest.raises(ValueError, match=r"FLTrust needs evidence\.root_delta"):
        FLTrust()(case.deltas, replace(case.evidence, root_delta=None))


def test_fltrust_stands_still_where_it_trusts_nobody() -> None:
    case = a_round(4)
    aggregate = replace(case, deltas=np.tile(-case.root, (5, 1))).apply(FLTrust())
    assert not bool(aggregate.delta.any())
    assert not bool(aggregate.weights.any())
    assert bool(aggregate.hostile.all())


def test_bulyan_does_not_let_attackers_who_agree_vouch_for_each_other() -> None:
    case = with_attackers(a_round(5, n=11, f=2))
    assert np.array_equal(case.apply(Bulyan(f=2)).weights[:2], np.zeros(2))


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
        assert np.array_equal(result.delta, results[0].delta)
        assert np.array_equal(result.weights, results[0].weights)


@pytest.mark.parametrize(
    ("rule", "n"),
    [
        (Mean(), 1),
        (Median(), 1),
        (TrimmedMean(f=3), 7),
        (TrimmedMean(f=0), 1),
        (Krum(f=1), 5),
        (Krum(f=0), 3),
        (MultiKrum(f=2), 7),
        (MultiKrum(f=1, m=4), 5),
        (MultiKrum(f=1, m=1), 5),
        (Bulyan(f=1), 7),
        (DnC(f=2), 5),
        (FLAME(noise=0.0), 2),
        (Mixed((NearestNeighbourMixing(f=3),), Mean()), 7),
        (Mixed((Bucketing(size=2),), Krum(f=1)), 9),
    ],
)
def test_as_many_hospitals_as_a_rule_asks_for_are_enough(rule: Aggregator, n: int) -> None:
    aggregate = a_round(0, n=n).apply(rule)
    assert bool(np.isfinite(aggregate.delta).all())
    assert float(aggregate.weights.sum()) == pytest.approx(1)


@pytest.mark.parametrize("m", [0, 6])
def test_multi_krum_takes_at_least_one_update_and_leaves_f(m: int) -> None:
    with pytest.raises(ValueError, match=f"1 <= m <= n - f, got n=7, f=2, m={m}"):
        a_round(0, n=7).apply(MultiKrum(f=2, m=m))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedMean(cap=math.nan), "cap=nan"),
        (lambda: WeightedMean(cap=-1.0), "cap=-1.0"),
        (lambda: CenteredClipping(radius=0.0), "radius=0.0"),
        (lambda: CenteredClipping(radius=math.nan), "radius=nan"),
        (lambda: FLAME(noise=math.nan), "noise=nan"),
        (lambda: Bucketing(size=-1), "size=-1"),
    ],
)
def test_a_setting_at_the_end_of_its_range_or_no_number_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_claim_of_no_scans_counts_nothing_and_where_most_claim_none_the_mean_is_refused() -> None:
    case = a_round(2, n=3)
    case.evidence.num_examples[:] = [6, 0, 2]
    assert case.apply(WeightedMean()).weights.tolist() == pytest.approx([0.75, 0.0, 0.25])
    assert case.apply(WeightedMean(cap=1.0)).weights.tolist() == pytest.approx([0.5, 0.0, 0.5])
    assert case.apply(WeightedMean(cap=math.inf)).weights.tolist() == pytest.approx([0.75, 0.0, 0.25])
    case.evidence.num_examples[:] = [6, 0, 0]
    with pytest.raises(ValueError, match=r"with a positive median, got \[6, 0, 0\]"):
        case.apply(WeightedMean())


@pytest.mark.parametrize(("norm", "passes"), [(0.125, True), (0.124, False), (3.0, True), (3.01, False), (1.0, True)])
def test_signguard_takes_norms_up_to_its_bounds_and_clips_to_the_median(norm: float, passes: bool) -> None:
    direction = np.zeros(64, np.float32)
    direction[:16] = 0.25  # of norm 1, exactly
    case = a_round(0, n=5, d=64)
    sizes = np.array([1.0, 1.0, 1.0, 1.0, norm], np.float32)
    aggregate = replace(case, deltas=sizes[:, None] * direction).apply(SignGuard(smallest=0.125, sign_share=1.0))
    assert aggregate.hostile.tolist() == [False] * 4 + [not passes]
    kept = 5 if passes else 4
    assert aggregate.weights.tolist() == pytest.approx([1 / kept] * 4 + [passes / kept])
    near(aggregate.delta, direction * ((4 + min(norm, 1.0)) / 5 if passes else 1.0))


def test_what_stands_in_an_update_of_no_weight_does_not_matter() -> None:
    rows = np.array([[1.0, 2.0], [math.nan, math.inf], [3.0, 6.0]], np.float32)
    assert combine(np.array([0.5, 0.0, 0.25]), rows).tolist() == [1.25, 2.5]
    assert not bool(combine(np.zeros(3), rows).any())


@pytest.mark.parametrize(("d", "step"), [(1, 1), (4096, 1), (4097, 2), (8192, 2), (8193, 3)])
def test_reports_look_at_evenly_spaced_columns_and_never_at_more_than_4096(d: int, step: int) -> None:
    deltas = np.arange(d, dtype=np.float32)[None]
    assert evenly_spaced(deltas)[0].tolist() == list(range(0, d, step))


def test_random_columns_are_all_where_there_are_no_more_and_some_of_them_each_once_else() -> None:
    deltas = np.arange(50, dtype=np.float32)[None]
    assert np.array_equal(random_columns(deltas, 50, generator=torch.Generator()), deltas)
    drawn = [random_columns(deltas, 49, generator=torch.Generator().manual_seed(n))[0].tolist() for n in range(5)]
    assert all(columns == sorted(set(columns)) and 20 < len(columns) < 49 for columns in drawn)
    assert len({tuple(columns) for columns in drawn}) == 5


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9), st.floats(0, 50))
def test_a_vector_is_shortened_to_the_limit_and_one_within_it_is_left_alone(norms: list[float], limit: float) -> None:
    factors = shrinkage(np.array(norms), limit)
    for norm, factor in zip(norms, factors, strict=True):
        assert factor * norm == pytest.approx(min(norm, limit), rel=1e-12)
        assert (factor == 1.0) == (norm <= limit)
