"""The eight sides of a scan: all different, and one answer for all of them."""

from __future__ import annotations

import pytest
import torch

from fedplatform.learning.models import Classifier, SmallCnn
from fedplatform.learning.models.symmetries import SYMMETRIES, SeenFrom, seen_from


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(SmallCnn(width=4)(channels=1, num_classes=3, size=16)).eval().requires_grad_(False)


def scans(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_scan_has_eight_different_sides_and_the_first_is_itself() -> None:
    (scan,) = scans(1)
    sides = [seen_from(scan[None], symmetry) for symmetry in SYMMETRIES]
    assert torch.equal(sides[0][0], scan)
    assert len({side.numpy().tobytes() for side in sides}) == 8


@pytest.mark.parametrize("turned", SYMMETRIES)
def test_a_scan_seen_from_all_sides_gets_one_answer_however_it_lies(classifier: Classifier, turned: int) -> None:
    seen = SeenFrom(classifier, SYMMETRIES)
    torch.testing.assert_close(seen(seen_from(scans(), turned)), seen(scans()))


def test_the_answer_is_the_mean_probability_of_the_sides(classifier: Classifier) -> None:
    several = (0, 2, 5)
    slow = sum(classifier(seen_from(scans(), side)).softmax(dim=1) for side in several) / len(several)
    torch.testing.assert_close(SeenFrom(classifier, several)(scans()).exp(), slow)


def test_one_side_is_the_classifier_itself(classifier: Classifier) -> None:
    torch.testing.assert_close(SeenFrom(classifier, (0,))(scans()), classifier(scans()).log_softmax(dim=1))


def test_an_attacker_sees_through_all_sides(classifier: Classifier) -> None:
    images = scans().requires_grad_()
    SeenFrom(classifier, SYMMETRIES)(images)[:, 0].sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).flatten(1).float().mean(dim=1).min() > 0.99
