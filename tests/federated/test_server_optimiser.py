"""The server's step: each optimiser is its paper's formula, and a run with it goes on after a crash as if unbroken."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.federated.server_optimiser import (
    Average,
    FedAdagrad,
    FedAdam,
    FedAvgM,
    FedYogi,
    Moments,
    ServerOptimiser,
)

ALL = [Average(0.5), FedAvgM(0.7, 0.8), FedAdagrad(0.1), FedAdagrad(0.1, 0.5), FedAdam(0.02, 0.6), FedYogi(0.02, 0.6)]


def by_definition(optimiser: ServerOptimiser, aggregates: list[list[float]]) -> list[list[float]]:
    """The papers' update rules for one weight after another, in float64."""
    steps = []
    d = len(aggregates[0])
    velocity, first = [0.0] * d, [0.0] * d
    second = [optimiser.tau**2] * d if isinstance(optimiser, FedAdagrad | FedAdam | FedYogi) else []
    for aggregate in aggregates:
        step = []
        for i, delta in enumerate(aggregate):
            match optimiser:
                case FedAvgM():
                    velocity[i] = optimiser.momentum * velocity[i] + delta
                    step.append(optimiser.learning_rate * velocity[i])
                    continue
                case Average():
                    step.append(optimiser.learning_rate * delta)
                    continue
                case FedAdagrad():
                    second[i] = second[i] + delta**2
                case FedAdam():
                    second[i] = optimiser.beta2 * second[i] + (1 - optimiser.beta2) * delta**2
                case FedYogi():
                    sign = (second[i] > delta**2) - (second[i] < delta**2)
                    second[i] = second[i] - (1 - optimiser.beta2) * delta**2 * sign
            first[i] = optimiser.beta1 * first[i] + (1 - optimiser.beta1) * delta
            step.append(optimiser.learning_rate * first[i] / (math.sqrt(second[i]) + optimiser.tau))
        steps.append(step)
    return steps


BAD = ["fedadam(learning_rate=0)", "fedavgm(momentum=1)", "fedyogi(tau=0)", "fedadam(beta2=2)"]
rounds = st.lists(
    st.lists(st.floats(-2, 2, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3), min_size=3, max_size=3), max_size=6
)


@pytest.mark.parametrize("optimiser", ALL, ids=str)
@given(aggregates=rounds)
def test_every_server_optimiser_is_its_papers_update_rule(
    optimiser: ServerOptimiser, aggregates: list[list[float]]
) -> None:
    moments: Moments = {}
    for aggregate, wanted in zip(aggregates, by_definition(optimiser, aggregates or [[]]), strict=False):
        held = np.array(aggregate, np.float32)
        step, moments = optimiser.step(held, moments)
        assert step.dtype == np.float32
        np.testing.assert_allclose(step, wanted, rtol=2e-3, atol=1e-6)
        assert np.array_equal(held, np.array(aggregate, np.float32)), "the aggregate is left alone"


def test_the_plain_average_is_the_aggregate_itself() -> None:
    aggregate = np.float32([0.1, -3.0])
    step, moments = Average().step(aggregate, {})
    assert step is aggregate
    assert moments == {}


@pytest.mark.parametrize("words", BAD)
def test_settings_that_make_no_sense_are_one_line(words: str) -> None:
    with pytest.raises(ExperimentError, match=r"needs .*, got") as refused:
        Experiment.from_settings({"server_optimiser": words})
    assert "\n" not in str(refused.value)


def test_a_server_optimiser_moves_the_weights_otherwise_and_learns(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    ended = {}
    for name in ("average", "fedavgm(momentum=0.5)", "fedadam(learning_rate=0.03)"):
        experiment = small.replace(server_optimiser=name, byzantine=0, attack="none", rounds=3)
        with InProcessEngine().launch(experiment, shards, state_folder=tmp_path / name) as federation:
            reports = list(federation.reports())
            ended[name] = federation.outcome().weights.tobytes()
        assert reports[-1].loss < reports[0].loss + 0.05
        assert np.isfinite(reports[-1].loss)
    assert len(set(ended.values())) == 3
