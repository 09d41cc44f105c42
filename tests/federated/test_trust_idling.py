"""Free riders: who sends what no training gives is known by it, and an honest hospital that differs is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_optigradtrust import D, Valley, evidence, honest_updates, valley

from fedplatform.core.messages import Aggregate
from fedplatform.federated.trust import OptiGradTrust
from fedplatform.federated.trust.idling import evidence as measured
from fedplatform.federated.trust.idling import idling

N, RIDERS = 10, 3
NOTHING = np.zeros(D, np.float32)


def noise(length: float, seed: int, *, shape: np.ndarray | None = None) -> np.ndarray:
    draw = np.random.default_rng(seed).normal(size=(RIDERS, D)) * (1 if shape is None else np.abs(shape))
    return (length * draw / np.linalg.norm(draw, axis=1, keepdims=True)).astype(np.float32)


def sent_by_riders(how: str, root: Valley, previous: np.ndarray, number: int) -> np.ndarray:
    usual = float(np.linalg.norm(root.place))
    return {
        "zeros": np.zeros((RIDERS, D), np.float32),
        "noise of a tenth": noise(usual / 10, number),
        "noise of the usual length": noise(usual, number),
        "noise shaped as the last step": noise(usual, number, shape=previous if previous.any() else root.delta),
        "the same noise": np.tile(noise(usual / 10, number)[:1], (RIDERS, 1)) + noise(usual / 50, number + 1),
        "the last step": np.tile(previous, (RIDERS, 1)),
        "the last step and noise": previous + noise(usual / 50, number),
        "the last step and much noise": previous + noise(usual / 2, number),
    }[how].astype(np.float32)


def played(how: str, rounds: int = 6) -> list[Aggregate]:
    """Rounds of a federation whose last three hospitals ride; its way turns a little in every round, as in training."""
    memory: object = None
    previous, aggregates = NOTHING, []
    for number in range(1, rounds + 1):
        root = Valley(valley(0).place + valley(number).place)
        deltas = honest_updates(N, root, seed=number, noise=2.0)
        deltas[N - RIDERS :] = sent_by_riders(how, root, previous, number)
        told = replace(evidence(N, root, memory=memory, number=number), previous_delta=previous)
        aggregates.append(OptiGradTrust(permutations=0)(deltas, told))
        memory, previous = aggregates[-1].memory, aggregates[-1].delta
    return aggregates


@pytest.mark.parametrize(
    "how",
    [
        *("zeros", "noise of a tenth", "noise of the usual length", "noise shaped as the last step", "the same noise"),
        *("the last step", "the last step and noise", "the last step and much noise"),
    ],
)
def test_riders_weigh_nothing_from_round_five_on_and_are_named(how: str) -> None:
    aggregates = played(how)
    for aggregate in aggregates[4:]:
        assert (aggregate.weights[N - RIDERS :] <= 0.1 / N).all()
        assert aggregate.hostile.tolist() == [False] * (N - RIDERS) + [True] * RIDERS
        assert all("as who does not train" in told.reason for told in aggregate.judgements[N - RIDERS :])


@pytest.mark.parametrize("length", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("alone", [0.0, 3.0, 6.0])
def test_an_honest_hospital_that_sends_little_or_differs_much_is_no_rider(length: float, alone: float) -> None:
    root = valley(0)
    deltas = honest_updates(N, root, seed=1)
    own = np.random.default_rng(5).normal(size=D)
    deltas[0] = length * (deltas[0] + alone * own)
    assert not idling(deltas, root.delta, NOTHING).any()
    assert not idling(deltas, root.delta, (0.9 * root.place + own / 4).astype(np.float32))[0]


def test_where_a_whole_round_is_noise_nobody_is_idle() -> None:
    root = valley(0)
    everybody = honest_updates(N, root, seed=1, noise=200.0)  # as under the noise of differential privacy
    assert np.median(measured(everybody, root.delta, NOTHING)) < 3
    assert not idling(everybody, root.delta, NOTHING).any()
    assert not idling(np.zeros((N, D), np.float32), root.delta, NOTHING).any()


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.floats(-60, 60), st.floats(-60, 60))
def test_what_is_measured_does_not_depend_on_lengths(power: float, of_previous: float) -> None:
    root, previous = valley(0), valley(3).place
    deltas = honest_updates(5, root, seed=1)
    usual = measured(deltas, root.delta, previous)
    scaled = deltas.copy()
    scaled[2] *= np.float32(2.0**power)
    found = measured(scaled, root.delta, previous * np.float32(2.0**of_previous))
    np.testing.assert_allclose(found, usual, rtol=1e-3)
