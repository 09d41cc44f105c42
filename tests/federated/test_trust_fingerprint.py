"""The fingerprint is what its definition says, whatever the size of the model, and costs no copy of the updates."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedplatform.federated.trust.fingerprint import (
    COPY,
    FEATURES,
    MAD_TO_STD,
    SKETCH,
    Fingerprints,
    first_of_copies,
    measure,
    relative_sketches,
    robust_z,
    take,
)


def updates(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator).numpy(), torch.randn(d, generator=generator).numpy()


def fingerprints(deltas: np.ndarray, root: np.ndarray) -> Fingerprints:
    n = len(deltas)
    return take(
        measure(deltas, root),
        hospital_ids=tuple(map(str, range(n))),
        errors=np.arange(1.0, n + 1),
        shapley=np.linspace(-1.0, 1.0, n),
    )


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 9), d=st.integers(2, 9000), seed=st.integers(0, 1000))
def test_the_features_are_those_of_the_paper(n: int, d: int, seed: int) -> None:
    deltas, root = updates(n, d, seed)
    values = fingerprints(deltas, root).values
    g, r = deltas.astype(np.float64), root.astype(np.float64)
    for k in range(n):
        others = [j for j in range(n) if j != k]
        cosine = g[k] @ r / np.linalg.norm(g[k]) / np.linalg.norm(r)
        peers = np.mean([g[k] @ g[j] / np.linalg.norm(g[k]) / np.linalg.norm(g[j]) for j in others])
        expected = [k + 1, cosine, peers, np.linalg.norm(g[k]), np.mean((g[k] >= 0) == (r >= 0))]
        np.testing.assert_allclose(values[k, :5], expected, rtol=1e-5, atol=1e-6)
    assert values.shape == (n, len(FEATURES))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 9), seed=st.integers(0, 1000))
def test_a_robust_z_score_is_the_distance_to_the_median_in_mads(n: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(n, 6)) * 100
    z = robust_z(values, votes=np.ones(n, dtype=bool))
    for column in (1, 2, 4):
        median = np.median(values[:, column])
        mad = np.median(np.abs(values[:, column] - median))
        np.testing.assert_allclose(z[:, column], (values[:, column] - median) / max(MAD_TO_STD * mad, 0.05), rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_neither_the_scale_of_all_updates_nor_their_order_changes_a_z_score(seed: int, scale: float) -> None:
    deltas, root = updates(7, 300, seed)
    order = np.random.default_rng(seed).permutation(7)
    usual = fingerprints(deltas, root)
    np.testing.assert_allclose(fingerprints(deltas * np.float32(scale), root).z, usual.z, rtol=1e-4, atol=1e-4)
    shuffled = take(
        measure(deltas[order], root),
        hospital_ids=tuple("abcdefg"),
        errors=usual.values[order, 0],
        shapley=usual.values[order, 5],
    )
    np.testing.assert_allclose(shuffled.z, usual.z[order], rtol=1e-4, atol=1e-4)


def test_a_sketch_keeps_inner_products() -> None:
    deltas, root = updates(6, 50_000, seed=3)
    deltas += root  # so that there are inner products to keep
    exact = deltas.astype(np.float64)
    sketches = measure(deltas, root).sketches
    assert sketches.shape == (6, SKETCH)
    gram, kept = exact @ exact.T, sketches @ sketches.T
    scale = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    assert np.abs(kept - gram).max() / scale.max() < 4 / np.sqrt(SKETCH)


def test_the_same_update_has_the_same_sketch_in_every_round() -> None:
    deltas, root = updates(4, 5000, seed=1)
    np.testing.assert_array_equal(measure(deltas, root).sketches[1], measure(deltas[1:], -root).sketches[0])


def test_copies_move_the_median_only_once() -> None:
    deltas, root = updates(10, 400, seed=5)
    deltas[7:] = deltas[7] * 30
    z = fingerprints(deltas, root).z
    assert (z[7:, FEATURES.index("norm")] > 10).all()
    assert np.abs(z[:7, FEATURES.index("norm")]).max() < 4


def test_who_comes_first_of_some_copies_has_the_vote() -> None:
    cosines = np.eye(4)
    cosines[1, 3] = cosines[3, 1] = COPY
    assert first_of_copies(cosines).tolist() == [True, True, True, False]


def test_an_update_of_zeros_has_a_fingerprint_without_nan() -> None:
    deltas, root = updates(5, 100, seed=0)
    deltas[2] = 0
    taken = fingerprints(deltas, root)
    assert np.isfinite(taken.values).all()
    assert np.isfinite(taken.z).all()
    assert np.isfinite(taken.table()).all()
    assert np.isfinite(relative_sketches(measure(np.zeros((3, 100), np.float32), root))).all()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_table_of_a_network_is_bounded_whatever_is_sent(size: float) -> None:
    deltas, root = updates(6, 200, seed=2)
    deltas[0] *= size
    assert np.abs(fingerprints(deltas, root).table()).max() <= 2.0


def test_nothing_near_the_size_of_the_updates_is_allocated() -> None:
    deltas, root = updates(10, 1_000_000, seed=0)
    tracemalloc.start()
    measure(deltas, root)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20  # the updates are 38 MiB
