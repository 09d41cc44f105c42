"""Shapley values: exact where they can be counted out, cheap where they cannot."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedplatform.federated.trust.shapley import GuidedShapley


def game(n: int, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Hospitals add to a common good with falling returns; some take from it."""
    gains = np.random.default_rng(seed).normal(0.5, 1.0, n)
    return lambda coalitions: np.tanh(coalitions @ gains / n)


def counted_out(worth: Callable[[np.ndarray], np.ndarray], n: int) -> np.ndarray:
    values, orders = np.zeros(n), list(permutations(range(n)))
    for order in orders:
        members = np.zeros((1, n), dtype=bool)
        for hospital in order:
            before = worth(members)[0]
            members[0, hospital] = True
            values[hospital] += worth(members)[0] - before
    return values / len(orders)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_many_permutations_come_to_the_value_of_all(seed: int) -> None:
    worth = game(5, seed)
    generator = torch.Generator().manual_seed(seed)
    estimate = GuidedShapley(permutations=400, tolerance=0.0)(worth, 5, generator=generator)
    exact = counted_out(worth, 5)
    np.testing.assert_allclose(estimate.values, exact, atol=0.1 * np.abs(exact).max())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(2, 12))
def test_without_truncation_the_values_add_up_to_what_all_together_are_worth(seed: int, n: int) -> None:
    worth = game(n, seed)
    estimate = GuidedShapley(tolerance=0.0)(worth, n, generator=torch.Generator().manual_seed(seed))
    both = worth(np.array([[False] * n, [True] * n]))
    np.testing.assert_allclose(estimate.values.sum(), both[1] - both[0], atol=1e-9)


def test_no_coalition_is_valued_twice() -> None:
    seen: list[bytes] = []
    worth = game(6, 1)

    def counting(coalitions: np.ndarray) -> np.ndarray:
        seen.extend(row.tobytes() for row in coalitions)
        return worth(coalitions)

    estimate = GuidedShapley(permutations=50)(counting, 6, generator=torch.Generator().manual_seed(0))
    assert len(seen) == len(set(seen)) == estimate.num_coalitions


def test_truncation_saves_most_coalitions_where_few_hospitals_decide_and_changes_little() -> None:
    def worth(coalitions: np.ndarray) -> np.ndarray:
        return 1 - np.exp(-3.0 * coalitions[:, :10].sum(axis=1))

    plain = GuidedShapley(permutations=20, tolerance=0.0)(worth, 20, generator=torch.Generator().manual_seed(3))
    cut = GuidedShapley(permutations=20)(worth, 20, generator=torch.Generator().manual_seed(3))
    assert cut.num_coalitions < plain.num_coalitions / 3
    assert np.abs(cut.values - plain.values).max() < 0.02


def test_a_round_that_stands_still_is_valued_all_the_same() -> None:
    """Attackers who bring training to a halt must not switch off what would find them."""

    def worth(coalitions: np.ndarray) -> np.ndarray:
        return coalitions @ np.array([1.0, 1.0, -2.0])

    values = GuidedShapley(permutations=9)(worth, 3, generator=torch.Generator().manual_seed(0)).values
    assert values[2] < 0 < min(values[:2])
