"""Every rule gives what its paper defines, on updates longer than one block of columns."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import slow_aggregation as slow
from aggregation_rounds import Round, a_round, with_attackers

from fedplatform.federated.aggregation import (
    FLAME,
    LASA,
    RULES,
    Aggregator,
    AlignIns,
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
    MultiKrum,
    NearestNeighbourMixing,
    NormClipping,
    SignGuard,
    TrimmedMean,
    WeightedMean,
)

Definition = Callable[[Round], np.ndarray]
DEFINITIONS: dict[str, tuple[Aggregator, Definition]] = {
    "mean": (Mean(), lambda case: slow.mean(case.rows)),
    "weighted_mean": (
        WeightedMean(cap=1.5),
        lambda case: slow.weighted_mean(case.rows, case.evidence.num_examples, 1.5),
    ),
    "median": (Median(), lambda case: slow.median(case.rows)),
    "trimmed_mean": (TrimmedMean(f=2), lambda case: slow.trimmed_mean(case.rows, 2)),
    "krum": (Krum(f=2), lambda case: slow.krum(case.rows, 2)),
    "multi_krum": (MultiKrum(f=2, m=5), lambda case: slow.multi_krum(case.rows, 2, 5)),
    "multi_krum of n - f": (MultiKrum(f=2), lambda case: slow.multi_krum(case.rows, 2, len(case.rows) - 2)),
    "bulyan": (Bulyan(f=2), lambda case: slow.bulyan(case.rows, 2)),
    "geometric_median": (GeometricMedian(), lambda case: slow.geometric_median(case.rows)),
    "rfa": (RULES["rfa"](), lambda case: slow.geometric_median(case.rows)),
    "centered_clipping": (
        CenteredClipping(),
        lambda case: slow.centered_clipping(case.rows, case.evidence.previous_delta, None, 1),
    ),
    "centered_clipping in three steps": (
        CenteredClipping(radius=20.0, steps=3),
        lambda case: slow.centered_clipping(case.rows, case.evidence.previous_delta, 20.0, 3),
    ),
    "fltrust": (FLTrust(), lambda case: slow.fltrust(case.rows, case.root.astype(np.float64))),
    "dnc": (DnC(f=2, num_coordinates=10**6), lambda case: slow.dnc(case.rows, 2)),
    "signguard": (SignGuard(sign_share=1000.0), lambda case: slow.signguard(case.rows)),
    "flame": (FLAME(noise=0.0), lambda case: slow.flame_without_noise(case.rows)),
    "foolsgold": (FoolsGold(), lambda case: slow.foolsgold([case.rows])),
    "fldetector": (FLDetector(), lambda case: slow.mean(case.rows)),  # in a first round
    "deepsight": (DeepSight(), lambda case: slow.deepsight(case.rows, 3, 4, 3, 1 / 3)),
    "lasa": (
        LASA(sparsity=0.4, norm_limit=1.5, sign_limit=1.2),
        lambda case: slow.lasa(
            case.rows, [(layer.size, len(layer.shape)) for layer in case.evidence.layers], 0.4, 1.5, 1.2
        ),
    ),
    "alignins": (
        AlignIns(share=0.25, cosine_limit=1.2, sign_limit=1.2),
        lambda case: slow.alignins(case.rows, case.evidence.weights, 0.25, 1.2),
    ),
}


def test_every_rule_has_a_slow_definition() -> None:
    assert set(RULES) <= set(DEFINITIONS)


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize(("n", "d"), [(11, 40), (12, 9001)])
def test_a_rule_agrees_with_its_slow_definition(name: str, n: int, d: int) -> None:
    rule, definition = DEFINITIONS[name]
    for case in (a_round(1, n=n, d=d), with_attackers(a_round(2, n=n, d=d), scale=3.0)):
        np.testing.assert_allclose(case.apply(rule).delta, definition(case), rtol=1e-4, atol=2e-5)


def test_the_geometric_median_is_a_point_from_which_all_pulls_cancel() -> None:
    case = a_round(3, n=30, d=5000)
    away = case.rows - case.apply(GeometricMedian()).delta
    pulls = away / np.linalg.norm(away, axis=1, keepdims=True)
    assert np.linalg.norm(pulls.sum(axis=0)) < 1e-4


def test_the_geometric_median_of_a_majority_at_one_point_is_that_point() -> None:
    case = a_round(4, n=9)
    case.deltas[:5] = case.deltas[0].copy()
    np.testing.assert_allclose(case.apply(GeometricMedian()).delta, case.deltas[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e12, 1e18])
def test_the_geometric_median_keeps_its_digits_however_far_an_attacker_goes(scale: float) -> None:
    near = a_round(5).rows
    near[:2] = near[2:].mean(axis=0) + 1e6 * (near[:2] - near[2:].mean(axis=0))
    far = a_round(5)
    far.deltas[:2] = far.rows[2:].mean(axis=0) + scale * (far.rows[:2] - far.rows[2:].mean(axis=0))
    np.testing.assert_allclose(far.apply(GeometricMedian()).delta, slow.geometric_median(near), atol=1e-4)


def test_the_median_of_an_even_number_is_the_mean_of_the_two_in_the_middle() -> None:
    case = a_round(0, n=4, d=1)
    case.deltas[:] = [[9.0], [1.0], [2.0], [4.0]]
    assert case.apply(Median()).delta.item() == 3.0


def test_krum_sums_squared_distances_to_n_minus_f_minus_2_neighbours() -> None:
    case = a_round(0, n=5, d=1)
    # With two neighbours 10 wins (1 + 1 against 1 + 4); counting one more, or unsquared, another would.
    case.deltas[:] = [[9.0], [10.0], [11.0], [0.0], [100.0]]
    assert case.apply(Krum(f=1)).delta.item() == 10.0


def test_a_claim_of_a_million_scans_counts_as_the_cap_allows() -> None:
    case = a_round(6, n=5)
    case.evidence.num_examples[:] = [100, 100, 100, 100, 10**6]
    assert case.apply(WeightedMean(cap=2.0)).weights[4] == pytest.approx(2 / 6)
    assert case.apply(WeightedMean(cap=math.inf)).weights[4] > 0.999


def test_flame_adds_noise_of_the_stated_size_from_the_rounds_generator() -> None:
    case = a_round(7, d=20_000)
    noise = case.apply(FLAME(noise=0.01)).delta - case.apply(FLAME(noise=0.0)).delta
    size = 0.01 * np.median(np.linalg.norm(case.deltas, axis=1))
    assert noise.std() == pytest.approx(size, rel=0.05)
    assert np.array_equal(case.apply(FLAME(noise=0.01)).delta, case.apply(FLAME(noise=0.01)).delta)


@pytest.mark.parametrize(("n", "f"), [(7, 3), (12, 2)])
def test_nearest_neighbour_mixing_agrees_with_its_slow_definition(n: int, f: int) -> None:
    case = a_round(8, n=n, f=f, d=9001)
    mixed, matrix = NearestNeighbourMixing(f)(case.deltas, case.evidence)
    np.testing.assert_allclose(mixed, slow.nearest_neighbour_mixing(case.rows, f), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mixed, matrix @ case.rows, rtol=1e-4, atol=1e-5)


def test_norm_clipping_agrees_with_its_slow_definition() -> None:
    case = with_attackers(a_round(9))
    clipped, matrix = NormClipping()(case.deltas, case.evidence)
    np.testing.assert_allclose(clipped, slow.norm_clipping(case.rows), rtol=1e-5)
    np.testing.assert_allclose(clipped, matrix @ case.rows, rtol=1e-4, atol=1e-5)
