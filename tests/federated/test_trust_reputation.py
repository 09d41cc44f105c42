"""Reputation falls fast, rises slowly and lets a hospital back in; what is strange is said in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedplatform.federated.trust.anomaly import AnomalyDetection, ramp
from fedplatform.federated.trust.fingerprint import Fingerprints, measure, take
from fedplatform.federated.trust.reputation import Reputation, Standing

trusts = st.floats(0.0, 1.0)


@given(reputation=trusts, trust=trusts, excluded=st.booleans())
def test_a_reputation_moves_towards_the_trust_of_the_round_and_stays_within_0_and_1(
    reputation: float, trust: float, excluded: bool
) -> None:
    after = Reputation().after(Standing(reputation, excluded), trust)
    low, high = sorted([reputation, trust])
    assert low - 1e-12 <= after.reputation <= high + 1e-12


def test_it_falls_faster_than_it_rises() -> None:
    rule = Reputation()
    fallen = rule.after(Standing(0.5), 0.0).reputation
    risen = rule.after(Standing(0.5), 1.0).reputation
    assert 0.5 - fallen > risen - 0.5 > 0


def test_one_bad_round_of_a_good_hospital_does_not_exclude_it_and_a_few_do() -> None:
    rule, standing = Reputation(), Standing(0.9)
    standing = rule.after(standing, 0.0)
    assert not standing.excluded
    for _ in range(3):
        standing = rule.after(standing, 0.0)
    assert standing.excluded


def test_an_excluded_hospital_comes_back_after_good_rounds_and_not_after_the_first() -> None:
    rule, standing, rounds = Reputation(), Standing(0.1, excluded=True), 0
    while standing.excluded:
        standing = rule.after(standing, 1.0)
        rounds += 1
        assert rounds < 20
    assert rounds > 1


def test_nobody_flickers_between_excluded_and_not() -> None:
    rule, standing, changes = Reputation(), Standing(0.6), 0
    for number in range(40):
        after = rule.after(standing, float(number % 2))
        changes += after.excluded != standing.excluded
        standing = after
    assert changes <= 1


def test_bounds_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="0 <= exclude < reinstate"):
        Reputation(exclude=0.6, reinstate=0.5)


def round_of(*, attacker: np.ndarray, n: int = 8, d: int = 2000) -> Fingerprints:
    """Seven alike hospitals and one that sends ``attacker``."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(d, generator=generator).numpy()
    deltas = root + np.float32(1.5) * torch.randn(n, d, generator=generator).numpy()
    deltas[-1] = attacker if len(attacker) else deltas[0]
    return take(
        measure(deltas, root), hospital_ids=tuple(map(str, range(n))), errors=np.ones(n), shapley=np.full(n, 0.1)
    )


def honest(d: int = 2000) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(d, generator=generator).numpy()
    return root + np.float32(1.5) * torch.randn(d, generator=torch.Generator().manual_seed(9)).numpy()


@pytest.mark.parametrize(
    ("attacker", "said"),
    [
        (31 * honest(), "norm 31 times the median"),
        (-honest(), "points away from the root update"),
        (np.empty(0, np.float32), "sends the same update as another hospital"),
    ],
)
def test_what_is_strange_about_an_update_is_said_in_words(attacker: np.ndarray, said: str) -> None:
    anomalies = AnomalyDetection()(round_of(attacker=attacker))
    assert said in anomalies.words(7)
    assert all(not anomalies.words(row) for row in range(1, 7))


def test_an_honest_hospital_is_normal() -> None:
    np.testing.assert_array_equal(AnomalyDetection()(round_of(attacker=honest())).normality, np.ones(8))


@given(st.floats(-10, 10), st.floats(-5, 5), st.floats(0.1, 5))
def test_a_ramp_goes_from_nothing_to_all(value: float, low: float, width: float) -> None:
    severity = float(ramp(np.array([value]), (low, low + width))[0])
    assert severity == pytest.approx(min(max((value - low) / width, 0.0), 1.0))
