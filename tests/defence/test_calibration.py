"""What a hospital fits on clean scans keeps its promises: rates, temperature, fusion, depth."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional

from fedplatform.defence.calibration import (
    TAIL,
    TAIL_DEVIATIONS,
    DepthMap,
    Fusion,
    Quantiles,
    expected_calibration_error,
    fit_temperature,
    pooled,
)

finite = st.floats(-100, 100, width=32)
FEW, MANY = settings(max_examples=15, deadline=None), settings(max_examples=60, deadline=None)
samples = st.lists(finite, min_size=1, max_size=30).map(torch.tensor)


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=stream(seed))


def answered(logits: torch.Tensor, seed: int) -> torch.Tensor:
    """Labels (n,) drawn by the probabilities that the logits (n, k) stand for."""
    return logits.softmax(dim=1).multinomial(1, generator=stream(seed)).flatten()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_of_logits_that_were_scaled_is_found_again(temperature: float) -> None:
    logits = 2 * normal(4000, 3, seed=0)
    labels = answered(logits, seed=1)
    assert fit_temperature(logits * temperature, labels, np.arange(4000)) == pytest.approx(temperature, rel=0.08)


@given(seed=st.integers(0, 1000), number=st.integers(1, 40), scale=st.floats(0.1, 10))
@FEW
def test_no_other_temperature_is_better_than_the_one_that_is_found(seed: int, number: int, scale: float) -> None:
    logits, labels = scale * normal(number, 3, seed=seed).double(), torch.arange(number) % 3
    groups = np.random.default_rng(seed).integers(0, 5, number)

    def cost(log_temperature: float) -> float:
        losses = functional.cross_entropy(logits / math.exp(log_temperature), labels, reduction="none")
        each = [float(losses[torch.from_numpy(groups == group)].mean()) for group in set(groups.tolist())]
        return sum(each) + log_temperature**2 / 2

    found = math.log(fit_temperature(logits, labels, groups))
    assert -3 <= found <= 3
    assert cost(found) <= min(cost(value) for value in np.linspace(-3, 3, 199)) + 1e-5


def test_without_scans_the_logits_stay_as_they_are() -> None:
    assert fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), np.zeros(0, int)) == 1.0


def test_a_few_scans_all_answered_rightly_do_not_make_every_later_answer_certain() -> None:
    few, many = ([[2.0, 0.0]] * number for number in (5, 5000))
    after_few = fit_temperature(torch.tensor(few), torch.zeros(5, dtype=torch.int64), np.arange(5))
    after_many = fit_temperature(torch.tensor(many), torch.zeros(5000, dtype=torch.int64), np.arange(5000))
    assert after_many < after_few / 2 < 0.5
    assert after_few > 0.5


@given(seed=st.integers(0, 1000), number=st.integers(1, 12), slices=st.integers(2, 30))
@FEW
def test_a_scan_that_is_shown_many_times_says_no_more_of_the_temperature_than_once(
    seed: int, number: int, slices: int
) -> None:
    logits, labels, groups = 3 * normal(number, 2, seed=seed), torch.arange(number) % 2, np.arange(number)
    once = fit_temperature(logits, labels, groups)
    often = fit_temperature(logits.repeat(slices, 1), labels.repeat(slices), np.tile(groups, slices))
    assert often == pytest.approx(once, rel=1e-3)


def test_calibration_improves_the_calibration_error_of_an_overconfident_classifier() -> None:
    logits = normal(4000, 3, seed=2)
    labels = answered(logits, seed=3)
    overconfident = 5 * logits
    before = expected_calibration_error(overconfident.softmax(dim=1), labels)
    temperature = fit_temperature(overconfident, labels, np.arange(4000))
    after = expected_calibration_error((overconfident / temperature).softmax(dim=1), labels)
    assert before > 0.25
    assert after < 0.04


def test_the_calibration_error_of_a_classifier_that_means_what_it_says_is_small() -> None:
    logits = 2 * normal(20_000, 4, seed=4)
    assert expected_calibration_error(logits.softmax(dim=1), answered(logits, seed=5)) < 0.02


def test_the_calibration_error_of_a_boaster_is_what_he_boasts() -> None:
    sure = torch.tensor([[1.0, 0.0]]).repeat(10, 1)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    assert expected_calibration_error(sure, labels) == pytest.approx(0.4)
    assert math.isnan(expected_calibration_error(sure[:0], labels[:0]))


@given(seed=st.integers(0, 1000), bins=st.integers(1, 20))
@FEW
def test_the_calibration_error_equals_a_slow_plain_implementation(seed: int, bins: int) -> None:
    probabilities = (2 * normal(50, 3, seed=seed)).double().softmax(dim=1)
    labels = torch.arange(50) % 3
    error = 0.0
    for number in range(bins):
        gaps = [
            float(label == row.argmax()) - float(row.max())
            for row, label in zip(probabilities, labels, strict=True)
            if number / bins < row.max() <= (number + 1) / bins
        ]
        error += abs(sum(gaps)) / 50
    assert expected_calibration_error(probabilities, labels, bins) == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize(("number", "rate"), [(19, 0.05), (40, 0.05), (100, 0.1), (33, 0.2)])
def test_clean_scans_pass_the_threshold_no_more_often_than_asked_and_not_much_less(number: int, rate: float) -> None:
    hospitals, scans = 400, 50
    alarms = []
    for seed in range(hospitals):
        scores = normal(number + scans, seed=seed).exp()  # of any distribution, a long-tailed one here
        threshold = Quantiles.of(scores[:number]).threshold(rate)
        alarms.append(float((scores[number:] > threshold).float().mean()))
    error = np.std(alarms) / math.sqrt(hospitals)
    assert rate - 1 / (number + 1) - 4 * error < np.mean(alarms) < rate + 4 * error


@given(values=samples, rate=st.floats(0, 1))
@MANY
def test_the_threshold_is_the_smallest_score_that_so_few_p_values_are_beyond(values: torch.Tensor, rate: float) -> None:
    quantiles = Quantiles.of(values)
    threshold = quantiles.threshold(rate)
    above = int((values.double() > threshold).sum())
    allowed = max(rate * (len(values) + 1) - 1, 0)  # of the n, for the new scan itself may be one of those above
    assert above <= allowed + 1e-6
    smaller = [score for score in quantiles.scores if score < threshold]
    if smaller:
        assert int((values.double() >= threshold).sum()) > allowed - 1e-6


def test_a_rate_that_so_few_scans_cannot_promise_gives_the_largest_score() -> None:
    quantiles = Quantiles.of(torch.tensor([3.0, 1.0, 2.0]))
    assert quantiles.threshold(0.0) == quantiles.threshold(0.05) == quantiles.threshold(0.25) == 3.0
    assert quantiles.threshold(0.5) == 2.0
    assert quantiles.threshold(1.0) == 1.0


def test_rounding_of_the_rate_does_not_cost_a_scan() -> None:
    of_99 = Quantiles.of(torch.arange(1.0, 100.0))  # with 99 scans a hundredth is one scan
    assert [of_99.threshold(percent / 100) for percent in range(1, 100)] == [100 - percent for percent in range(1, 100)]


@given(values=samples, scores=samples)
@MANY
def test_the_p_value_is_the_share_of_clean_scans_at_least_as_strange(
    values: torch.Tensor, scores: torch.Tensor
) -> None:
    slow = [(1 + sum(1 for value in values if value >= score)) / (1 + len(values)) for score in scores]
    assert Quantiles.of(values).p_value(scores).tolist() == pytest.approx(slow)


@given(values=samples, scores=samples, rate=st.floats(0.01, 0.99))
@MANY
def test_a_score_above_the_threshold_has_a_p_value_within_the_rate(
    values: torch.Tensor, scores: torch.Tensor, rate: float
) -> None:
    quantiles = Quantiles.of(values)
    flagged = scores > quantiles.threshold(rate)
    limit = max(rate, 1 / (1 + len(values)))
    assert bool((quantiles.p_value(scores)[flagged] <= limit + 1e-6).all())


def test_the_p_values_of_clean_scans_are_never_smaller_than_uniform_ones() -> None:
    small = []
    for seed in range(400):
        scores = normal(60, seed=seed)
        small.append(float((Quantiles.of(scores[:30]).p_value(scores[30:]) <= 0.1).float().mean()))
    assert np.mean(small) < 0.1 + 4 * np.std(small) / 20


@given(values=samples, scores=samples)
@MANY
def test_the_rank_is_the_interpolated_place_among_the_clean_scores(values: torch.Tensor, scores: torch.Tensor) -> None:
    ranks = stats.rankdata(values.numpy()) / (len(values) + 1)  # ties share the mean
    known, first = np.unique(values.numpy(), return_index=True)
    slow = np.interp(scores.numpy().astype(float), known.astype(float), ranks[first])
    assert Quantiles.of(values).rank(scores).numpy() == pytest.approx(slow, abs=1e-5)


def test_the_rank_has_the_slope_of_the_line_it_lies_on() -> None:
    scores = torch.tensor([0.5, 2.0, 9.0, -1.0], dtype=torch.float64, requires_grad=True)
    quantiles = Quantiles.of(torch.tensor([0.0, 1.0, 3.0]))
    (slope,) = torch.autograd.grad(quantiles.rank(scores).sum(), scores)
    assert slope.tolist() == [0.25, 0.125, 0.0, 0.0]


@given(values=samples)
@MANY
def test_quantiles_survive_json_and_do_not_depend_on_the_order_of_the_scans(values: torch.Tensor) -> None:
    quantiles = Quantiles.of(values)
    assert Quantiles.from_dict(json.loads(json.dumps(quantiles.to_dict()))) == quantiles
    assert Quantiles.of(values.flip(0)) == quantiles


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_scores_that_are_no_measure_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        Quantiles.of(torch.tensor(values))
    with pytest.raises(ValueError, match="finite"):
        Fusion.fit({"reconstruction": torch.tensor(values)})


def test_a_silent_score_is_not_asked_for_and_what_is_usual_of_it_is_known() -> None:
    clean = {"loud": normal(50, seed=0), "quiet": normal(50, seed=1) + 7}
    fusion = Fusion.fit(clean, silent=("quiet",))
    assert fusion.counting == ("loud",)
    assert fusion.location["quiet"] == pytest.approx(float(clean["quiet"].median()), abs=0.2)
    assert torch.equal(fusion({"loud": clean["loud"]}), Fusion.fit({"loud": clean["loud"]})({"loud": clean["loud"]}))
    with pytest.raises(ValueError, match=r"takes .'loud'., got .'loud', 'quiet'."):
        fusion(clean)
    with pytest.raises(ValueError, match="at least one score"):
        Fusion.fit(clean, silent=("loud", "quiet"))


Federation = tuple[list[torch.Tensor], list[torch.Tensor]]


@st.composite
def lenders(draw: st.DrawFn) -> Federation:
    """Scores of honest hospitals, and of all hospitals in any order: fewer than half of those may lie."""
    own = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30).map(torch.tensor)
    wild = st.lists(st.floats(width=32) | st.floats(-50, 50, width=32), min_size=1, max_size=90).map(torch.tensor)
    byzantine = draw(st.lists(wild, max_size=3))
    honest = draw(st.lists(own, min_size=len(byzantine) + 1, max_size=6))
    return honest, draw(st.permutations([*honest, *byzantine]))


@given(federation=lenders(), rate=st.sampled_from([0.01, 0.05, 0.2, 0.5]))
@MANY
def test_no_f_attackers_move_a_borrowed_limit_above_that_of_every_honest_hospital(
    federation: Federation, rate: float
) -> None:
    honest, everybody = federation

    def limit(scores: torch.Tensor) -> float:
        return Quantiles.of(scores).threshold(rate)

    borrowed = limit(pooled(everybody, limit, f=len(everybody) - len(honest)))
    assert borrowed <= max(limit(scores) for scores in honest)
    assert borrowed >= min(float(scores.min()) for scores in honest)


@given(federation=lenders(), rate=st.sampled_from([0.01, 0.05, 0.2, 0.5]))
@MANY
def test_where_nobody_is_feared_all_scores_are_pooled_as_they_come(federation: Federation, rate: float) -> None:
    honest, _ = federation
    everything = pooled(honest, lambda own: Quantiles.of(own).threshold(rate), f=0)
    torch.testing.assert_close(everything, torch.cat(honest), rtol=0, atol=0)


@given(federation=lenders())
@MANY
def test_no_f_attackers_move_what_a_borrowed_score_is_measured_by_out_of_the_range_of_honest_hospitals(
    federation: Federation,
) -> None:
    honest, everybody = federation
    fusion = Fusion.of_hospitals([{"score": scores} for scores in everybody], f=len(everybody) - len(honest))
    middle, scale = fusion.location["score"], fusion.scale["score"]
    medians = [np.median(scores.double()) for scores in honest]
    assert min(medians) <= middle <= max(medians)
    highest = max(Quantiles.of(scores).threshold(1 - TAIL) for scores in honest)
    own = [Fusion.fit({"score": scores}).scale["score"] for scores in honest]
    assert 0 < scale <= max((highest - middle) / TAIL_DEVIATIONS, *own) * (1 + 1e-9)


def test_an_attacker_with_very_many_scores_that_end_where_all_end_does_not_blind_the_borrowed_detector() -> None:
    """Nine in ten far below all others: such a pool keeps its tail, loses its middle, and takes all scans for usual."""
    honest = [normal(60, seed=seed) for seed in range(4)]
    attacker = torch.cat([normal(1000, seed=9) + TAIL_DEVIATIONS, torch.full((9000,), -1000.0)])
    each = [{"score": scores} for scores in (*honest, attacker)]
    tampered = {"score": torch.tensor([6.0])}
    assert Fusion.of_hospitals(each, f=0)(tampered).item() < 2
    assert Fusion.of_hospitals(each, f=1)(tampered).item() > 4


def parts_of(columns: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"part {number}": column for number, column in enumerate(columns.T)}


def caught(fuse: object, clean: torch.Tensor, attacked: torch.Tensor) -> float:
    """The share of attacked scans (m, k) above the 5 % threshold that clean validation scans (n, k) set."""
    assert callable(fuse)
    threshold = Quantiles.of(fuse(parts_of(clean))).threshold(0.05)
    return float((fuse(parts_of(attacked)) > threshold).float().mean())


@given(columns=st.integers(0, 1000), scale=st.floats(0.01, 100), shift=finite)
@FEW
def test_the_unit_and_the_zero_of_a_score_do_not_matter_and_neither_does_the_order(
    columns: int, scale: float, shift: float
) -> None:
    clean, new = normal(50, 3, seed=columns).double(), normal(9, 3, seed=columns + 1).double()
    usual = Fusion.fit(parts_of(clean))(parts_of(new))
    changed = torch.tensor([scale, 1.0, 1.0]), torch.tensor([shift, 0.0, 0.0])
    moved = Fusion.fit(parts_of(clean * changed[0] + changed[1]))(parts_of(new * changed[0] + changed[1]))
    turned = Fusion.fit(dict(reversed(parts_of(clean).items())))(parts_of(new))
    torch.testing.assert_close(moved, usual, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(turned, usual)


def test_one_score_alone_is_its_own_deviation_and_the_same_score_twice_counts_once() -> None:
    clean, new = normal(2000, 1, seed=0), normal(9, 1, seed=1)
    alone = Fusion.fit(parts_of(clean))(parts_of(new))
    twice = Fusion.fit(parts_of(clean.repeat(1, 2)))(parts_of(new.repeat(1, 2)))
    torch.testing.assert_close(alone, new[:, 0], rtol=0.1, atol=0.1)
    torch.testing.assert_close(twice, alone)


@given(seed=st.integers(0, 1000), place=st.integers(0, 2), size=st.floats(-50, 50))
@FEW
def test_every_score_raises_the_fused_one_and_lends_it_its_slope(seed: int, place: int, size: float) -> None:
    fusion = Fusion.fit(parts_of(normal(50, 3, seed=seed).double()))
    new = torch.zeros(1, 3, dtype=torch.float64)
    new[0, place] = size
    new.requires_grad_()
    score = fusion(parts_of(new))
    (slope,) = torch.autograd.grad(score.sum(), new)
    assert bool((slope > 0).all())
    scale = torch.tensor(list(fusion.scale.values()), dtype=torch.float64)
    assert float((slope * scale).sum()) == pytest.approx(1)  # one deviation more of everything is one more of the score


@pytest.mark.parametrize("number", [2, 3])
def test_the_soft_maximum_sees_one_loud_score_and_many_soft_ones(number: int) -> None:
    """The simulation that chose it: 3 deviations in one score, or 1.5 in each of them."""
    clean, attacked = normal(2000, number, seed=0), normal(2000, number, seed=1)
    one = attacked + 3 * functional.one_hot(torch.tensor(0), number)
    all_of_them = attacked + 1.5
    fusion = Fusion.fit(parts_of(clean))

    def deviations(parts: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([(parts[name] - fusion.location[name]) / fusion.scale[name] for name in parts])

    def largest(parts: dict[str, torch.Tensor]) -> torch.Tensor:
        return deviations(parts).amax(dim=0)

    def mean(parts: dict[str, torch.Tensor]) -> torch.Tensor:
        return deviations(parts).mean(dim=0)

    def squares(parts: dict[str, torch.Tensor]) -> torch.Tensor:
        return deviations(parts).clamp(min=0).square().sum(dim=0)

    assert caught(fusion, clean, one) > caught(mean, clean, one) + 0.1
    assert caught(fusion, clean, all_of_them) > caught(largest, clean, all_of_them) + 0.05
    for shifted in (one, all_of_them):
        assert caught(fusion, clean, shifted) > caught(squares, clean, shifted) - 0.03


def test_a_score_with_a_long_tail_does_not_drown_the_others() -> None:
    clean, attacked = normal(1000, 2, seed=0), normal(1000, 2, seed=1)
    attacked[:, 0] += 3
    clean[:, 1], attacked[:, 1] = (2 * clean[:, 1]).exp(), (2 * attacked[:, 1]).exp()
    fusion = Fusion.fit(parts_of(clean))
    spread = {name: float(stats.median_abs_deviation(part, scale="normal")) for name, part in parts_of(clean).items()}
    assert caught(fusion, clean, attacked) > 0.6
    assert caught(Fusion(fusion.location, spread), clean, attacked) < 0.2


def test_a_score_that_never_varies_on_clean_scans_is_still_heard() -> None:
    clean = {"constant": torch.full((20,), 0.5), "half constant": torch.cat([torch.zeros(19), torch.ones(1)])}
    fusion = Fusion.fit(clean)
    assert fusion.scale["constant"] == 1
    assert 0 < fusion.scale["half constant"] < 1
    usual = fusion({"constant": torch.tensor([0.5]), "half constant": torch.zeros(1)})
    strange = fusion({"constant": torch.tensor([9.5]), "half constant": torch.zeros(1)})
    assert usual.item() == pytest.approx(0)
    assert strange.item() > 5


def test_a_fusion_takes_the_scores_it_was_fitted_to_and_survives_json() -> None:
    fusion = Fusion.fit(parts_of(normal(50, 2, seed=0)))
    assert Fusion(**json.loads(json.dumps(asdict(fusion)))) == fusion
    with pytest.raises(ValueError, match=r"takes \['part 0', 'part 1'\], got \['part 0'\]"):
        fusion({"part 0": torch.zeros(3)})
    with pytest.raises(ValueError, match="at least one"):
        Fusion.fit({})


@given(scores=samples, low=finite, width=st.floats(0, 50))
@MANY
def test_the_depth_rises_with_the_score_from_the_least_to_the_most(
    scores: torch.Tensor, low: float, width: float
) -> None:
    depth = DepthMap(20, 200, low, low + width)
    ordered = scores.sort().values
    fractional, steps = depth.fractional(ordered), depth(ordered)
    assert steps.dtype == torch.int64
    assert bool((fractional.diff() >= 0).all())
    assert bool(((steps - fractional).abs() <= 0.5).all())
    assert bool((steps[ordered <= low] == 20).all())
    assert bool((steps[ordered >= low + width + 0.01] == 200).all())
    assert bool(((steps >= 20) & (steps <= 200)).all())


def test_the_depth_is_linear_between_the_quantiles_and_differentiable() -> None:
    depth = DepthMap(0, 100, 1.0, 3.0)
    scores = torch.tensor([0.0, 1.5, 2.0, 4.0], requires_grad=True)
    assert depth(scores).tolist() == [0, 25, 50, 100]
    (slope,) = torch.autograd.grad(depth.fractional(scores).sum(), scores)
    assert slope.tolist() == [0, 50, 50, 0]


def test_the_depth_is_fitted_to_the_median_and_the_99_percent_quantile_of_clean_scores() -> None:
    depth = DepthMap.fit(Quantiles.of(torch.arange(1.0, 200.0)), t_min=10, t_max=50)
    assert depth == DepthMap(10, 50, 100.0, 198.0)


def test_a_depth_map_of_a_single_scan_is_a_step() -> None:
    depth = DepthMap.fit(Quantiles.of(torch.tensor([2.0])), t_min=10, t_max=50)
    assert depth(torch.tensor([1.9, 2.0, 2.1])).tolist() == [10, 10, 50]


def test_a_depth_map_whose_ends_are_crossed_is_refused() -> None:
    with pytest.raises(ValueError, match="t_min <= t_max"):
        DepthMap(50, 10, 0.0, 1.0)
    with pytest.raises(ValueError, match="low <= high"):
        DepthMap(10, 50, 1.0, 0.0)
