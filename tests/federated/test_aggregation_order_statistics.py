"""The sorting network: exact, small, and fair to hospitals that tie."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedplatform.core.vectors import gram_matrix
from fedplatform.federated.aggregation.order_statistics import (
    mean_around_median,
    mean_of_ranks,
    median_ranks,
    rank_shares,
)


@pytest.mark.parametrize("n", range(1, 11))
def test_every_window_of_ranks_is_right_on_all_zero_one_inputs(n: int) -> None:
    # A network of comparators that sorts all inputs of zeros and ones sorts everything (Knuth's zero-one principle).
    inputs = (np.arange(2**n) >> np.arange(n)[:, None] & 1).astype(np.float32)
    ordered = np.sort(inputs, axis=0)
    for first in range(n):
        for stop in range(first + 1, n + 1):
            mean = ordered[first:stop].mean(axis=0)
            np.testing.assert_allclose(mean_of_ranks(inputs, first, stop), mean, rtol=1.3e-6, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 40), d=st.integers(1, 50), seed=st.integers(0, 2**32 - 1))
def test_the_median_is_the_middle_of_a_sort(n: int, d: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    median = mean_of_ranks(rows, *median_ranks(n))
    np.testing.assert_allclose(median, np.median(rows, axis=0), rtol=1e-6)


def test_columns_beyond_the_first_block_are_worked_on_too() -> None:
    rows = np.random.default_rng(0).normal(size=(7, 40_001)).astype(np.float32)
    assert np.array_equal(mean_of_ranks(rows, 3, 4), np.sort(rows, axis=0)[3])
    around = mean_around_median(rows, chosen=np.arange(7), count=7)
    np.testing.assert_allclose(around, rows.mean(axis=0), rtol=1.3e-6, atol=1e-5)


def test_values_around_the_median_may_all_lie_on_one_side() -> None:
    for values, expected in (([0.0, 10.0, 11.0, 12.0, 100.0], 11.0), ([0.0, 5.0, 11.0, 12.0, 13.0], 12.0)):
        assert (
            mean_around_median(np.array(values, np.float32)[:, None], chosen=np.arange(5), count=3).item() == expected
        )


def test_rows_that_tie_share_their_ranks() -> None:
    values = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 4.0]], np.float32)
    shares = rank_shares(values, 1, 3)
    assert shares.dtype == np.float64
    np.testing.assert_allclose(shares, [0.125, 0.375, 0.375, 0.125], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("compute", [lambda rows: mean_of_ranks(rows, 4, 6), gram_matrix], ids=["median", "gram"])
def test_a_million_parameters_of_ten_hospitals_need_no_second_copy(compute: object) -> None:
    assert callable(compute)
    rows = np.zeros((10, 1_000_000), np.float32)
    tracemalloc.start()
    compute(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
