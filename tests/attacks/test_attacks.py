from __future__ import annotations

import dataclasses
import pickle
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedplatform.attacks.poisoning import (
    ATTACKS,
    Backdoor,
    Collusion,
    DataPoisoning,
    FingerprintAware,
    FreeRider,
    GaussianNoise,
    InnerProduct,
    LabelFlip,
    LittleIsEnough,
    Mimic,
    MinMax,
    MinSum,
    PartialScaling,
    Scaling,
    SignFlip,
    Situation,
    Sleeper,
    UpdatePoisoning,
    stamp_trigger,
)
from fedplatform.attacks.poisoning.collusion import supported_z
from fedplatform.attacks.poisoning.honest_statistics import SIGN, HonestStatistics
from fedplatform.attacks.poisoning.moments import gram_of, mean_of, products_of, std_of
from fedplatform.core.seeding import numpy_generator, torch_generator

DIRECTIONS = ["unit", "std", "sign"]
COLLUSIONS = {name: attack() for name, attack in ATTACKS.items() if issubclass(attack, Collusion)}
UPDATE_POISONINGS = {name: attack() for name, attack in ATTACKS.items() if issubclass(attack, UpdatePoisoning)}
DATA_POISONINGS = {name: attack() for name, attack in ATTACKS.items() if issubclass(attack, DataPoisoning)}


def situation(
    *,
    d: int = 1,
    n: int = 10,
    f: int = 3,
    seed: int = 0,
    round_number: int = 2,
    group: tuple[str, ...] = (),
    memory: dict[str, torch.Tensor] | None = None,
) -> Situation:
    return Situation(
        num_hospitals=n,
        num_byzantine=f,
        round_number=round_number,
        previous_delta=torch.linspace(-1, 1, d),
        generator=torch_generator(seed, "attacker"),
        weights=torch.linspace(1, 2, d),
        honest_ids=tuple(f"honest-{number}" for number in range(n - f)),
        group=group,
        memory={} if memory is None else memory,
    )


def updates(h: int, d: int, *, seed: int = 0, spread: float = 1.0, offset: float = 0.3) -> torch.Tensor:
    return offset + spread * torch.randn(h, d, generator=torch.Generator().manual_seed(seed))


def scans(n: int = 60, *, num_classes: int = 5, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 200, (n, 1, size, size), dtype=np.uint8)
    return images, np.arange(n, dtype=np.int64) % num_classes


def of_unlike_hospitals(h: int, d: int, *, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    """Updates with a common part, three parts of which each hospital has more or less, noise, and unlike lengths."""
    generator = torch.Generator().manual_seed(seed)
    common, kinds, noise = (torch.randn(n, d, generator=generator) for n in (1, 3, h))
    shares, lengths = torch.randn(h, 3, generator=generator), torch.randn(h, 1, generator=generator)
    return spread * (0.2 * lengths).exp() * (common + 0.5 * shares @ kinds + noise)


honest_updates = st.builds(
    updates,
    st.integers(2, 12),
    st.integers(1, 40),
    seed=st.integers(0, 2**20),
    spread=st.sampled_from([1e-3, 1.0, 50.0]),
    offset=st.sampled_from([0.0, 0.01, 1.0]),
)


unlike_hospitals = st.builds(
    of_unlike_hospitals,
    st.integers(6, 12),
    st.integers(400, 900),
    seed=st.integers(0, 2**20),
    spread=st.sampled_from([1e-3, 1.0, 50.0]),
)


def slow_mean(honest: torch.Tensor) -> np.ndarray:
    return honest.double().numpy().mean(axis=0)


def slow_std(honest: torch.Tensor) -> np.ndarray:
    return honest.double().numpy().std(axis=0, ddof=1)


def slow_perturbation(honest: torch.Tensor, direction: str) -> np.ndarray:
    mean = slow_mean(honest)
    return {"unit": -mean / np.linalg.norm(mean), "std": -slow_std(honest), "sign": -np.sign(mean)}[direction]


def farthest(point: np.ndarray, honest: torch.Tensor) -> float:
    return max(float(np.linalg.norm(point - row)) for row in honest.double().numpy())


def diameter(honest: torch.Tensor) -> float:
    return max(float(np.linalg.norm(a - b)) for a, b in combinations(honest.double().numpy(), 2))


def summed(point: np.ndarray, honest: torch.Tensor) -> float:
    return sum(float(np.sum((point - row) ** 2)) for row in honest.double().numpy())


def largest_sum(honest: torch.Tensor) -> float:
    return max(summed(row, honest) for row in honest.double().numpy())


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))


def fingerprint(row: np.ndarray, others: np.ndarray, fellows: np.ndarray) -> list[float]:
    """The six stand-ins by the book: an update against the other honest ones and, for an attacker, its fellows."""
    mean = others.mean(axis=0)
    outside = row - others.T @ np.linalg.lstsq(others.T, row, rcond=None)[0]
    return [
        float(np.linalg.norm(outside)),
        cosine(row, mean),
        float(np.mean([cosine(row, peer) for peer in [*others, *fellows]])),
        float(np.linalg.norm(row)),
        float(np.mean((row >= 0) == (mean >= 0))),
        float(row @ mean),
    ]


def fingerprints(honest: torch.Tensor, forged: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Those of the honest (h, 6) among themselves, and those of the forged (m, 6)."""
    truth, lies = honest.double().numpy(), forged.double().numpy()
    return (
        np.array(
            [fingerprint(row, np.delete(truth, i, axis=0), np.empty((0, len(row)))) for i, row in enumerate(truth)]
        ),
        np.array([fingerprint(row, truth, np.delete(lies, i, axis=0)) for i, row in enumerate(lies)]),
    )


def band(truth: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    middle = np.median(truth, axis=0)
    return middle, width * np.median(np.abs(truth - middle), axis=0)


def has_room(middle: np.ndarray, reach: np.ndarray, length: float) -> bool:
    """Whether some norm and some cosine well within the bands make an inner product well within its band."""
    _, cosines, _, norms, _, products = zip(middle - 0.8 * reach, middle + 0.8 * reach, strict=True)
    possible = [norm * cosine * length for norm in norms for cosine in cosines]
    return max(possible) >= products[0] and min(possible) <= products[1]


def pair_cosines(rows: torch.Tensor) -> list[float]:
    return [cosine(a, b) for a, b in combinations(rows.double().numpy(), 2)]


def test_every_attack_has_exactly_one_way_to_lie_but_for_backdoors_that_bend_their_update_too() -> None:
    both = DATA_POISONINGS.keys() & UPDATE_POISONINGS.keys()
    assert both == {"model_replacement", "neurotoxin"}
    assert len(COLLUSIONS) + len(UPDATE_POISONINGS) + len(DATA_POISONINGS) == len(ATTACKS) + len(both)
    assert not COLLUSIONS.keys() & (UPDATE_POISONINGS.keys() | DATA_POISONINGS.keys())


@pytest.mark.parametrize("attack", [attack() for attack in ATTACKS.values()], ids=list(ATTACKS))
def test_an_attack_is_a_value_that_survives_pickling(attack: object) -> None:
    assert pickle.loads(pickle.dumps(attack)) == attack
    assert dataclasses.is_dataclass(attack)


@settings(deadline=None, max_examples=30)
@given(honest_updates)
def test_the_moments_are_those_of_the_textbook(honest: torch.Tensor) -> None:
    mean = mean_of(honest)
    centred = honest.double().numpy() - slow_mean(honest)
    np.testing.assert_allclose(mean.numpy(), slow_mean(honest), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(std_of(honest, mean).numpy(), slow_std(honest), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gram_of(honest, mean), centred @ centred.T, rtol=1e-9, atol=1e-9)


def test_the_gram_matrix_counts_every_column_of_a_long_vector_once() -> None:
    honest = updates(3, 40_000)
    centred = honest.double().numpy() - slow_mean(honest)
    np.testing.assert_allclose(gram_of(honest, mean_of(honest)), centred @ centred.T, rtol=1e-9, atol=1e-9)


def test_the_products_of_two_sets_count_every_column_once() -> None:
    left, right = updates(3, 10_000), updates(5, 10_000, seed=1)
    expected = left.double().numpy() @ right.double().numpy().T
    np.testing.assert_allclose(products_of(left, right), expected, rtol=1e-9)


@settings(deadline=None, max_examples=30)
@given(honest_updates, st.floats(0.1, 3))
def test_alie_is_z_standard_deviations_below_the_mean_in_every_coordinate(honest: torch.Tensor, z: float) -> None:
    sent = LittleIsEnough(z=z).collude(honest, situation()).double().numpy()
    expected = slow_mean(honest) - z * slow_std(honest)
    np.testing.assert_allclose(sent, expected, rtol=1e-6, atol=1e-6 * float(honest.abs().max()))


@pytest.mark.parametrize(
    ("n", "f", "z"), [(50, 24, 1.4260769), (10, 3, 0.1800124), (10, 4, 0.4307273), (7, 3, 0.6744898)]
)
def test_alie_takes_the_z_of_the_paper_from_n_and_f(n: int, f: int, z: float) -> None:
    honest = updates(n - f, 20)
    assert supported_z(n, f) == pytest.approx(z, abs=1e-6)
    by_default = LittleIsEnough(z=None).collude(honest, situation(n=n, f=f))
    assert torch.equal(by_default, LittleIsEnough(z=supported_z(n, f)).collude(honest, situation()))


@pytest.mark.parametrize(("n", "f"), [(10, 1), (10, 2), (10, 6)])
def test_alie_refuses_to_send_the_mean_or_its_opposite_where_the_paper_has_no_z(n: int, f: int) -> None:
    with pytest.raises(ValueError, match=rf"ALIE needs 0 < 2 \* supporters < n - f.*n={n}, f={f}"):
        LittleIsEnough(z=None).collude(updates(n - f, 4), situation(n=n, f=f))


@pytest.mark.parametrize("direction", DIRECTIONS)
@settings(deadline=None, max_examples=30)
@given(honest=honest_updates)
def test_min_max_stays_as_near_as_the_honest_are_apart_and_not_a_thousandth_nearer(
    direction: str, honest: torch.Tensor
) -> None:
    sent = MinMax(direction=direction).collude(honest, situation()).double().numpy()
    limit, step = diameter(honest), sent - slow_mean(honest)
    rounding = 1e-6 * np.linalg.norm(sent)
    assert farthest(sent, honest) <= limit * (1 + 1e-6) + rounding
    assert farthest(slow_mean(honest) + (1 + 1e-3) * step, honest) > limit - rounding


@pytest.mark.parametrize("direction", DIRECTIONS)
@settings(deadline=None, max_examples=30)
@given(honest=honest_updates)
def test_min_sum_has_the_summed_distance_of_the_worst_honest_update_and_no_more(
    direction: str, honest: torch.Tensor
) -> None:
    sent = MinSum(direction=direction).collude(honest, situation()).double().numpy()
    limit, step = largest_sum(honest), sent - slow_mean(honest)
    rounding = 1e-6 * np.linalg.norm(sent) * np.sqrt(limit * len(honest))
    assert summed(sent, honest) <= limit * (1 + 1e-6) + rounding
    assert summed(slow_mean(honest) + (1 + 1e-3) * step, honest) > limit - rounding


@pytest.mark.parametrize("attack", [MinMax, MinSum])
@pytest.mark.parametrize("direction", DIRECTIONS)
@settings(deadline=None, max_examples=20)
@given(honest=honest_updates)
def test_min_max_and_min_sum_leave_the_mean_along_their_direction(
    attack: type[MinMax | MinSum], direction: str, honest: torch.Tensor
) -> None:
    step = attack(direction=direction).collude(honest, situation()).double().numpy() - slow_mean(honest)
    p = slow_perturbation(honest, direction)
    cosine = step @ p / (np.linalg.norm(step) * np.linalg.norm(p))
    assert cosine == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("attack", [MinMax, MinSum])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_min_max_and_min_sum_have_nowhere_to_go_when_all_honest_agree(
    attack: type[MinMax | MinSum], direction: str
) -> None:
    honest = updates(1, 30).repeat(5, 1)
    sent = attack(direction=direction).collude(honest, situation())
    torch.testing.assert_close(sent, honest[0])


@pytest.mark.parametrize("attack", [MinMax, MinSum])
def test_a_mean_of_zero_has_no_direction_back_and_is_sent_as_it_is(attack: type[MinMax | MinSum]) -> None:
    honest = torch.tensor([[1.0, -2.0], [-1.0, 2.0]])
    assert torch.equal(attack(direction="unit").collude(honest, situation()), torch.zeros(2))


@pytest.mark.parametrize("attack", [MinMax, MinSum])
def test_an_unknown_direction_is_refused(attack: type[MinMax | MinSum]) -> None:
    with pytest.raises(ValueError, match="one of unit, std, sign, got 'sideways'"):
        attack(direction="sideways")


def test_inner_product_manipulation_points_against_the_honest_mean() -> None:
    honest = updates(7, 50)
    sent = InnerProduct(scale=0.5).collude(honest, situation())
    np.testing.assert_allclose(sent.numpy(), -0.5 * slow_mean(honest), rtol=1e-6)


def test_the_mimic_copies_its_hospital_and_finds_the_one_farthest_out() -> None:
    honest = updates(6, 30, spread=0.1)
    honest[4] += 5 * torch.linspace(-1, 1, 30)
    mimic = Mimic.farthest_out(honest)
    assert mimic == Mimic(hospital=4)
    assert torch.equal(mimic.collude(honest, situation()), honest[4])


@settings(deadline=None, max_examples=30)
@given(honest_updates)
def test_farthest_out_is_measured_along_the_first_principal_direction(honest: torch.Tensor) -> None:
    centred = honest.double().numpy() - slow_mean(honest)
    principal = np.linalg.svd(centred, full_matrices=False)[2][0]
    along = np.abs(centred @ principal)
    assert along[Mimic.farthest_out(honest).hospital] == pytest.approx(along.max(), rel=1e-6)


def test_the_mimic_refuses_to_copy_a_hospital_that_did_not_report() -> None:
    with pytest.raises(ValueError, match="0 <= hospital < 5 honest updates, got hospital=6"):
        Mimic(hospital=6).collude(updates(5, 3), situation())


@pytest.mark.parametrize("attack", [LittleIsEnough(z=1.0), MinMax(), MinSum()])
def test_a_single_honest_update_has_no_spread_to_hide_in(attack: Collusion) -> None:
    with pytest.raises(ValueError, match=r"at least 2 honest updates.*got 1"):
        attack.collude(updates(1, 3), situation())


@settings(deadline=None, max_examples=30)
@given(unlike_hospitals, st.integers(1, 4), st.sampled_from([1.0, 2.0, 4.0]))
def test_every_feature_of_a_fingerprint_aware_attacker_stays_in_the_honest_band(
    honest: torch.Tensor, f: int, width: float
) -> None:
    forged = FingerprintAware(width=width).collude(honest, situation(f=f))
    truth, lies = fingerprints(honest, forged)
    middle, reach = band(truth, width)
    assume(has_room(middle, reach, float(np.linalg.norm(slow_mean(honest)))))
    assert (np.abs(lies - middle) <= reach * (1 + 1e-3)).all()


@settings(deadline=None, max_examples=30)
@given(unlike_hospitals, st.integers(2, 4))
def test_fingerprint_aware_attackers_differ_as_honest_hospitals_do(honest: torch.Tensor, f: int) -> None:
    among_attackers = pair_cosines(FingerprintAware().collude(honest, situation(f=f)))
    among_honest = pair_cosines(honest)
    truth, _ = fingerprints(honest, honest)
    assume(has_room(*band(truth, 2.0), float(np.linalg.norm(slow_mean(honest)))))
    assert min(among_honest) - 1e-3 <= min(among_attackers)
    assert max(among_attackers) <= max(among_honest) + 1e-3


@settings(deadline=None, max_examples=30)
@given(unlike_hospitals, st.integers(1, 4))
def test_a_fingerprint_aware_attacker_helps_less_than_most_honest_hospitals(honest: torch.Tensor, f: int) -> None:
    mean = slow_mean(honest)
    forged = FingerprintAware().collude(honest, situation(f=f))
    assert (forged.double().numpy() @ mean).max() < np.median(honest.double().numpy() @ mean)


def test_a_wider_band_lets_a_fingerprint_aware_attacker_do_more_harm() -> None:
    honest = of_unlike_hospitals(9, 600)
    along = [
        float((FingerprintAware(width=width).collude(honest, situation()) @ honest.mean(dim=0)).mean())
        for width in (0.5, 2.0, 4.0)
    ]
    assert along == sorted(along, reverse=True)


@settings(deadline=None, max_examples=30)
@given(unlike_hospitals, st.integers(1, 4))
def test_the_crowd_reckons_the_features_as_the_slow_version_does(honest: torch.Tensor, f: int) -> None:
    forged = updates(f, honest.shape[1], spread=float(honest.std()))
    statistics = HonestStatistics.of(honest, width=2.0)
    truth, lies = fingerprints(honest, forged)
    middle, reach = band(truth, 2.0)
    reach[SIGN] = max(reach[SIGN], 0.5 / honest.shape[1])  # the median of an even number of shares may lie between two
    np.testing.assert_allclose(statistics.middle, middle, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(statistics.tolerance, reach, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(statistics.features(forged)[0], lies, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(statistics.cosines, [min(pair_cosines(honest)), max(pair_cosines(honest))], rtol=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 12), st.integers(1, 40), st.integers(0, 2**20), st.integers(1, 6))
def test_fewer_coordinates_than_hospitals_leave_a_fingerprint_aware_attacker_finite_and_of_honest_length(
    h: int, d: int, seed: int, f: int
) -> None:
    honest = updates(h, d, seed=seed)
    norms = FingerprintAware().collude(honest, situation(f=f)).norm(dim=1)
    assert len(norms) == f
    assert norms.isfinite().all()
    assert norms.max() <= 2 * honest.norm(dim=1).max()


def test_a_weight_that_no_honest_hospital_moves_is_moved_by_no_fingerprint_aware_attacker() -> None:
    honest = of_unlike_hospitals(7, 500)
    honest[:, 100:300] = 0
    forged = FingerprintAware().collude(honest, situation())
    assert not forged[:, 100:300].any()
    assert HonestStatistics.of(honest, width=2.0).strain_of(forged) <= 1


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_fingerprint_aware_attacker_sends_a_mean_without_direction_as_it_is(value: float) -> None:
    sent = FingerprintAware().collude(torch.full((4, 6), value), situation())
    assert sent.shape == (3, 6)
    torch.testing.assert_close(sent, torch.full((3, 6), value), equal_nan=True)


def test_a_fingerprint_aware_attacker_agrees_with_honest_hospitals_that_all_agree() -> None:
    honest = updates(1, 30).repeat(5, 1)
    torch.testing.assert_close(FingerprintAware().collude(honest, situation()), honest[:3], rtol=1e-2, atol=1e-2)


def test_a_fingerprint_aware_attacker_needs_a_spread_to_hide_in() -> None:
    with pytest.raises(ValueError, match=r"at least 3 honest updates.*got 2"):
        FingerprintAware().collude(updates(2, 30), situation())
    with pytest.raises(ValueError, match="width > 0, got 0"):
        FingerprintAware(width=0)


def test_sign_flip_and_scaling_multiply_the_own_update() -> None:
    own = updates(1, 20)[0]
    torch.testing.assert_close(SignFlip(scale=2).corrupt(own, situation()), -2 * own)
    torch.testing.assert_close(Scaling().corrupt(own, situation()), 10 * own)


@pytest.mark.parametrize("patience", [1, 5, 8])
def test_a_sleeper_is_honest_until_its_patience_ends_and_flips_signs_from_then_on(patience: int) -> None:
    own = updates(1, 20)[0]
    sleeper = Sleeper(patience=patience, scale=3)
    for number in range(1, 12):
        sent = sleeper.corrupt(own, situation(round_number=number))
        assert torch.equal(sent, own if number <= patience else -3 * own)


def test_a_sleeper_that_never_sleeps_is_refused() -> None:
    with pytest.raises(ValueError, match="patience >= 1, got 0"):
        Sleeper(patience=0)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.floats(0.01, 1), st.integers(0, 2**20))
def test_partial_scaling_scales_the_largest_coordinates_and_only_those(d: int, fraction: float, seed: int) -> None:
    own = updates(1, d, seed=seed)[0]
    scaled = PartialScaling(scale=5, fraction=fraction).corrupt(own, situation()) != own
    assert int(scaled.sum()) == int(np.ceil(fraction * d))
    assert bool(scaled.all()) or own[scaled].abs().min() >= own[~scaled].abs().max()


def test_gaussian_noise_has_its_sigma_in_every_coordinate() -> None:
    own = updates(1, 20_000)[0]
    noise = GaussianNoise(sigma=0.5).corrupt(own, situation()) - own
    assert float(noise.std()) == pytest.approx(0.5, rel=0.03)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)


def test_a_free_rider_sends_the_last_step_and_nothing_of_its_own() -> None:
    here = situation(d=1_000)
    sent = FreeRider(scale=0.5).corrupt(updates(1, 1_000)[0], here)
    other = FreeRider(scale=0.5).corrupt(updates(1, 1_000, seed=1)[0], situation(d=1_000))
    assert torch.equal(sent, other)
    torch.testing.assert_close(sent, 0.5 * here.previous_delta, rtol=0, atol=1e-3)


def test_two_free_riders_never_send_the_same() -> None:
    own = torch.zeros(10)
    one, two = (FreeRider().corrupt(own, situation(d=10, seed=seed)) for seed in (1, 2))
    assert not torch.equal(one, two)


@pytest.mark.parametrize(("fraction", "changed"), [(1.0, 48), (0.5, 24)])
def test_label_flip_mirrors_the_classes_of_a_fraction_of_the_scans(fraction: float, changed: int) -> None:
    images, labels = scans()
    keeps = labels == 2  # the middle of five classes is its own mirror image
    same, flipped = LabelFlip(fraction=fraction).poison(
        images, labels, num_classes=5, generator=numpy_generator(0, "poison")
    )
    wrong = flipped != labels
    assert np.array_equal(same, images)
    assert np.array_equal(flipped[wrong], 4 - labels[wrong])
    assert not wrong[keeps].any()
    assert abs(int(wrong.sum()) - changed) <= (0 if fraction == 1 else 8)


def test_the_backdoor_stamps_and_relabels_half_of_the_other_classes_and_nothing_else() -> None:
    images, labels = scans()
    stamped, relabelled = Backdoor(target=1).poison(
        images, labels, num_classes=5, generator=numpy_generator(0, "poison")
    )
    touched = (stamped != images).any(axis=(1, 2, 3))
    assert touched.sum() == 24
    assert not touched[labels == 1].any()
    assert (relabelled[touched] == 1).all()
    assert np.array_equal(relabelled[~touched], labels[~touched])
    assert np.array_equal(stamped[touched], stamp_trigger(images[touched]))


@pytest.mark.parametrize(("size", "side"), [(8, 2), (28, 3), (128, 16)])
def test_the_trigger_is_a_white_square_in_the_lower_right_corner(size: int, side: int) -> None:
    stamped = stamp_trigger(np.zeros((2, 3, size, size), dtype=np.uint8))
    assert (stamped[:, :, -side:, -side:] == 255).all()
    assert stamped.sum() == 2 * 3 * side * side * 255


def test_the_trigger_is_refused_on_images_in_other_units() -> None:
    with pytest.raises(ValueError, match=r"uint8 images \(n, c, h, w\), got float32 \(1, 1, 8, 8\)"):
        stamp_trigger(np.zeros((1, 1, 8, 8), dtype=np.float32))


def test_a_backdoor_to_a_class_that_does_not_exist_is_refused() -> None:
    images, labels = scans()
    with pytest.raises(ValueError, match="0 <= target < 5 classes, got target=5"):
        Backdoor(target=5).poison(images, labels, num_classes=5, generator=np.random.default_rng(0))


@pytest.mark.parametrize("attack", [LabelFlip, Backdoor, PartialScaling])
@pytest.mark.parametrize("fraction", [0.0, 1.5, float("nan")])
def test_a_fraction_outside_zero_to_one_is_refused(attack: type, fraction: float) -> None:
    with pytest.raises(ValueError, match=f"0 < fraction <= 1, got {fraction}"):
        attack(fraction=fraction)


@pytest.mark.parametrize("attack", COLLUSIONS.values(), ids=COLLUSIONS)
def test_a_collusion_answers_in_kind_writes_to_nothing_and_repeats_itself(attack: Collusion) -> None:
    honest = updates(7, 100)
    before = honest.clone()
    sent, again = (attack.collude(honest, situation(d=100)) for _ in range(2))
    sent_once = sent.clone()
    sent += 1  # what was sent is not a view of what was looked at
    assert torch.equal(honest, before)
    assert torch.equal(sent_once, again)
    assert sent.shape in [(100,), (3, 100)]
    assert sent.dtype == torch.float32


@pytest.mark.parametrize("attack", UPDATE_POISONINGS.values(), ids=UPDATE_POISONINGS)
def test_an_update_poisoning_answers_in_kind_writes_to_nothing_and_repeats_itself(attack: UpdatePoisoning) -> None:
    own, here = updates(1, 100)[0], situation(d=100)
    before, previous = own.clone(), here.previous_delta.clone()
    sent, again = attack.corrupt(own, here), attack.corrupt(own, situation(d=100))
    sent_once = sent.clone()
    sent += 1
    assert torch.equal(own, before)
    assert torch.equal(here.previous_delta, previous)
    assert torch.equal(sent_once, again)
    assert sent.shape == (100,)
    assert sent.dtype == torch.float32


@pytest.mark.parametrize("attack", DATA_POISONINGS.values(), ids=DATA_POISONINGS)
def test_a_data_poisoning_answers_in_kind_writes_to_nothing_and_repeats_itself(attack: DataPoisoning) -> None:
    images, labels = scans()
    kept_images, kept_labels = images.copy(), labels.copy()
    first, second = (
        attack.poison(images, labels, num_classes=5, generator=numpy_generator(0, "poison")) for _ in range(2)
    )
    first_images, first_labels = first[0].copy(), first[1].copy()
    first[0][:], first[1][:] = 0, 0
    assert np.array_equal(images, kept_images)
    assert np.array_equal(labels, kept_labels)
    assert np.array_equal(first_images, second[0])
    assert np.array_equal(first_labels, second[1])
    assert first_images.dtype == np.uint8
    assert first_labels.dtype == np.int64


@pytest.mark.parametrize("attack", COLLUSIONS.values(), ids=COLLUSIONS)
def test_a_collusion_sends_the_same_bits_on_any_number_of_threads(attack: Collusion) -> None:
    honest = updates(13, 50_000)
    threads = torch.get_num_threads()
    try:
        sent = []
        for count in (1, 4):
            torch.set_num_threads(count)
            sent.append(attack.collude(honest, situation(d=50_000)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*sent)
