"""Every patient counts alike, however many scans there are of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.run import partition_data
from fedplatform.learning.training.sampling import epoch_order, group_odds, odds_of

scans_of_patients = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=40)


@given(scans_of_patients)
def test_a_class_keeps_its_share_and_its_groups_share_it_alike(scans: list[tuple[int, int]]) -> None:
    labels, groups = np.array(scans).T
    odds = group_odds(labels, groups).numpy()
    assert odds.sum() == pytest.approx(1)
    for label in np.unique(labels):
        inside = labels == label
        assert odds[inside].sum() == pytest.approx(inside.mean())
        of_groups = [odds[inside & (groups == group)].sum() for group in np.unique(groups[inside])]
        assert of_groups == pytest.approx([inside.mean() / len(of_groups)] * len(of_groups))


@given(scans_of_patients)
def test_sampling_by_classes_shows_every_class_as_often_and_its_groups_alike(scans: list[tuple[int, int]]) -> None:
    labels, groups = np.array(scans).T
    drawn = odds_of("classes", labels, groups)
    assert drawn is not None
    odds, classes = drawn.numpy(), np.unique(labels)
    for label in classes:
        inside = labels == label
        assert odds[inside].sum() == pytest.approx(1 / len(classes))
        of_groups = [odds[inside & (groups == group)].sum() for group in np.unique(groups[inside])]
        assert of_groups == pytest.approx([of_groups[0]] * len(of_groups))
    assert odds_of("scans", labels, groups) is None


@given(scans_of_patients, st.randoms(use_true_random=False))
def test_odds_follow_the_scans_whatever_their_order_and_the_numbers_of_their_groups(scans, random) -> None:
    labels, groups = np.array(scans).T
    order = np.array(random.sample(range(len(scans)), len(scans)))
    moved = group_odds(labels[order], 7 * groups[order] + 3)
    assert moved.numpy() == pytest.approx(group_odds(labels, groups).numpy()[order])


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_where_every_scan_is_a_group_of_its_own_all_are_as_likely(labels: list[int]) -> None:
    odds = group_odds(np.array(labels), np.arange(len(labels)))
    assert odds.numpy() == pytest.approx([1 / len(labels)] * len(labels))


def test_an_epoch_shows_a_patient_of_one_slice_as_often_as_one_of_forty() -> None:
    labels, groups = np.repeat([0, 0, 1], [40, 1, 41]), np.repeat([0, 1, 2], [40, 1, 41])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([epoch_order(82, group_odds(labels, groups), generator) for _ in range(100)]).numpy()
    shares = np.bincount(groups[drawn]) / len(drawn)
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.03)  # four deviations are .02
    assert torch.equal(epoch_order(82, None, generator).sort().values, torch.arange(82))


def test_a_federation_draws_by_patients_where_it_is_told_to(tmp_path: Path) -> None:
    settings = {
        "data": "lesions",
        "size": 16,
        "scans": 300,
        "hospitals": 3,
        "byzantine": 0,
        "attack": "none",
        "rounds": 1,
    }
    experiment = Experiment.from_settings({**settings, "rule": "mean"})
    partition_data(experiment, tmp_path / "shards")

    def weights(sampling: str, attempt: int = 0) -> np.ndarray:
        told = experiment.replace(sampling=sampling)
        state = tmp_path / f"{sampling}-{attempt}"
        with InProcessEngine().launch(told, tmp_path / "shards", state_folder=state) as federation:
            list(federation.reports())
            return federation.outcome().weights

    by_groups = weights("groups")
    assert not np.array_equal(weights("scans"), by_groups)
    assert np.array_equal(by_groups, weights("groups", 1))
