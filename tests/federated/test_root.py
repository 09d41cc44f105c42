"""The server's own scans: the loss of a step on them, its slope, and the rounds that are played on them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from other_device import ELSEWHERE, OtherDevice

from fedplatform.data.shards import ROOT, Manifest, Shard
from fedplatform.data.splits import Role
from fedplatform.experiments.engine import InProcessEngine, local_training
from fedplatform.experiments.experiment import Experiment
from fedplatform.federated.hospital import Hospital
from fedplatform.federated.root_set import BROKEN, RootInRound, RootSet
from fedplatform.learning.training import Trainer


@pytest.fixture
def root(small: Experiment, shards: Path) -> RootInRound:
    return root_of(small, shards)


def root_of(experiment: Experiment, shards: Path) -> RootInRound:
    trainer = Trainer(local_training(experiment, Manifest.load(shards)))
    hospital = Hospital("root", Shard.open(shards / ROOT), trainer=trainer, state_file=None, role=Role.ROOT)
    return RootSet(hospital).at(trainer.initial_weights, 1)


def test_the_servers_own_update_lowers_its_loss_and_the_opposite_does_not(root: RootInRound) -> None:
    nothing = np.zeros_like(root.delta)
    still, ahead, back = root.losses(np.stack([nothing, 0.2 * root.delta, -0.2 * root.delta]))
    assert ahead < still < back


def test_the_slope_is_that_of_the_loss(root: RootInRound) -> None:
    slope = root.gradient(np.zeros_like(root.delta))
    assert slope.shape == root.delta.shape
    along = slope / np.linalg.norm(slope)
    size = 1e-2
    up, down = root.losses(np.stack([size * along, -size * along]))
    assert (up - down) / (2 * size) == pytest.approx(float(np.linalg.norm(slope)), rel=0.1)


def test_a_step_that_breaks_the_model_has_a_large_and_finite_loss(root: RootInRound) -> None:
    assert root.losses(np.full((1, len(root.delta)), 1e38, np.float32))[0] == BROKEN


def test_looking_at_steps_changes_neither_the_weights_nor_the_root_hospital(root: RootInRound) -> None:
    weights = root.weights.copy()
    personal = {name: value.clone() for name, value in root.hospital.personal.items()}
    first = root.losses(root.delta[None])
    root.gradient(root.delta)
    root.rehearse(num_hospitals=3, num_rounds=1, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(root.weights, weights)
    assert all(torch.equal(value, personal[name]) for name, value in root.hospital.personal.items())
    assert root.losses(root.delta[None]) == first


def test_played_rounds_are_made_of_unlike_hospitals_and_go_on_from_each_other(root: RootInRound) -> None:
    played = root.rehearse(num_hospitals=4, num_rounds=3, generator=torch.Generator().manual_seed(0))
    assert len(played) == 3
    for before, after in itertools.pairwise(played):
        np.testing.assert_allclose(after.previous_delta, before.honest.mean(axis=0), rtol=1.3e-6, atol=1e-5)
    for one in played:
        assert one.honest.shape == one.label_flipped.shape == (4, len(root.delta))
        assert not np.array_equal(one.honest[0], one.honest[1])
        similarity = torch.nn.functional.cosine_similarity(*map(torch.from_numpy, (one.honest, one.label_flipped)))
        assert (similarity < 0.99).all()


def test_the_same_stream_plays_the_same_rounds(root: RootInRound) -> None:
    one, other = (
        root.rehearse(num_hospitals=3, num_rounds=2, generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert np.array_equal(one[1].honest, other[1].honest)


def test_on_another_device_losses_slopes_and_played_rounds_are_those_of_the_cpu(
    small: Experiment, shards: Path, root: RootInRound
) -> None:
    with OtherDevice() as card:
        there = root_of(small.model_copy(update={"device": str(ELSEWHERE)}), shards)
        steps = np.outer(np.linspace(-0.2, 0.2, 5, dtype=np.float32), root.delta)
        before = len(card.waits)
        losses = there.losses(steps)
        assert len(card.waits) == before + 1, "all losses are fetched at once"
        slope = there.gradient(root.delta)
        (played,) = there.rehearse(num_hospitals=3, num_rounds=1, generator=torch.Generator().manual_seed(0))
    (expected,) = root.rehearse(num_hospitals=3, num_rounds=1, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(there.delta, root.delta, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses, root.losses(steps), rtol=1e-4)
    np.testing.assert_allclose(slope, root.gradient(root.delta), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(played.honest, expected.honest, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["label_flip", "min_max"])
def test_a_federation_on_another_device_ends_with_the_weights_of_the_cpu(
    small: Experiment, shards: Path, tmp_path: Path, attack: str
) -> None:
    def weights(experiment: Experiment, folder: str) -> np.ndarray:
        with InProcessEngine().launch(experiment, shards, state_folder=tmp_path / folder) as federation:
            assert all(report.had_effect for report in federation.reports())
            return federation.outcome().weights

    experiment = small.replace(rule="trust", attack=attack, f=1, rounds=2)
    with OtherDevice() as card:
        there = weights(experiment.model_copy(update={"device": str(ELSEWHERE)}), "there")
    assert card.computed > 1000
    np.testing.assert_allclose(there, weights(experiment, "here"), rtol=1e-3, atol=1e-4)
