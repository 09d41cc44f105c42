"""Figures by site: by definition, with intervals that hold what they promise, and not misled by a pooled figure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fedplatform.core.messages import Predictions, RoundReport
from fedplatform.core.rounds import predictions_of, predictions_table
from fedplatform.learning.metrics import calibration_error, reliability
from fedplatform.learning.site_figures import POOLED, _drawn_auc, figures_by_site


def predictions(site: str, scores: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> Predictions:
    probabilities = np.stack([1 - scores, scores], axis=1).astype(np.float32)
    numbers = np.arange(len(labels)) if groups is None else groups
    return Predictions(site, "test", probabilities, labels.astype(np.int64), 0.5, groups=numbers)


def drawn(seed: int, n: int, *, signal: float, share: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = (random.random(n) < share).astype(np.int64)
    return 1 / (1 + np.exp(-(random.normal(size=n) + signal * (2 * labels - 1)))), labels


SCANS = st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans(), st.integers(0, 3))


@given(st.lists(SCANS, min_size=2, max_size=30))
def test_the_auc_of_a_draw_is_sklearns_with_these_weights(scans: list[tuple[float, bool, int]]) -> None:
    scores, positive, weights = (np.array(column) for column in zip(*scans, strict=True))
    (area,) = _drawn_auc(scores, positive.astype(bool), weights[None].astype(np.float64))
    drawn_labels = positive[weights > 0]
    if len(set(drawn_labels.tolist())) < 2:
        assert np.isnan(area)
    else:
        wanted = roc_auc_score(positive, scores, sample_weight=weights)
        assert area == pytest.approx(wanted)


def test_a_pooled_auc_that_tells_sites_apart_stands_beside_sites_where_nothing_is_told() -> None:
    rare = predictions("rare", np.linspace(0.01, 0.2, 200), np.arange(200) % 20 == 0)
    common = predictions("common", np.linspace(0.7, 0.9, 200), np.arange(200) % 20 != 0)
    first, second, pooled = figures_by_site([rare, common])
    assert (first.site, second.site, pooled.site) == ("rare", "common", POOLED)
    assert max(first.auc.value, second.auc.value) < 0.6
    assert pooled.auc.value > 0.9
    assert pooled.class_counts == (200, 200)
    assert first.has_few
    assert not pooled.has_few


def test_nine_of_ten_intervals_hold_the_true_auc() -> None:
    scores, labels = drawn(0, 200_000, signal=0.7)
    truth = roc_auc_score(labels, scores)
    held = 0
    for seed in range(60):
        (site,) = figures_by_site([predictions("a", *drawn(seed + 1, 150, signal=0.7))])
        held += site.auc.low <= truth <= site.auc.high
    assert held >= 52, "95 % of 60 are 57"


def test_scans_of_one_patient_widen_the_interval() -> None:
    scores, labels = drawn(3, 60, signal=0.7)
    (alone,) = figures_by_site([predictions("a", scores, labels)])
    (repeated,) = figures_by_site(
        [predictions("a", np.repeat(scores, 10), np.repeat(labels, 10), np.repeat(np.arange(60), 10))]
    )
    (pretended,) = figures_by_site([predictions("a", np.repeat(scores, 10), np.repeat(labels, 10))])
    width = [one.auc.high - one.auc.low for one in (alone, repeated, pretended)]
    assert width[1] == pytest.approx(width[0], rel=0.1)
    assert width[2] < 0.5 * width[0], "six hundred scans of sixty patients are no six hundred patients"
    assert (repeated.scans, repeated.groups) == (600, 60)


def test_balanced_accuracy_sensitivity_and_specificity_are_shares_of_the_classes() -> None:
    scores, labels = np.array([0.9, 0.8, 0.3, 0.2, 0.6, 0.1]), np.array([1, 1, 1, 0, 0, 0])
    (site,) = figures_by_site([predictions("a", scores, labels)])
    assert site.sensitivity == pytest.approx(2 / 3)
    assert site.specificity == pytest.approx(2 / 3)
    assert site.balanced_accuracy.value == pytest.approx(2 / 3)
    assert site.balanced_accuracy.low < 2 / 3 < site.balanced_accuracy.high


def test_a_site_without_a_class_has_no_auc_and_no_interval() -> None:
    (site,) = figures_by_site([predictions("a", np.array([0.9, 0.8]), np.array([1, 1]))])
    assert np.isnan(site.auc.value)
    assert np.isnan(site.auc.low)
    assert site.sensitivity == 1
    assert figures_by_site([]) == ()
    assert figures_by_site(Predictions.failed("a", ["test"], "it broke")) == ()


def test_the_calibration_error_is_the_mean_gap_between_confidence_and_accuracy() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 1, 50_000)
    labels = (random.random(50_000) < confidence).astype(int)
    honest = np.stack([1 - confidence, confidence], axis=1)
    assert calibration_error(honest, labels) < 0.01
    boastful = np.tile([0.0, 1.0], (50_000, 1))
    assert calibration_error(boastful, labels) == pytest.approx(1 - labels.mean())
    assert sum(one.share for one in reliability(honest, labels)) == pytest.approx(1)
    assert np.isnan(calibration_error(honest[:0], labels[:0]))


def test_predictions_come_out_of_their_table_as_they_went_in() -> None:
    of_patients = predictions("b", *drawn(0, 5, signal=1), groups=np.array([0, 0, 1, 2, 2]))
    sent = [of_patients, predictions("a", *drawn(1, 3, signal=1))]
    failed = Predictions.failed("c", ["test"], "it broke")
    report = RoundReport(7, 0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, (), tests=(*sent, *failed))
    table = predictions_table(report)
    assert predictions_of(table, round_number=8) == (), "an older file is not taken for the last round's"
    got = predictions_of(table, round_number=7)
    assert [one.hospital_id for one in got] == ["b", "a"]
    for one, other in zip(got, sent, strict=True):
        assert one.probabilities.tobytes() == other.probabilities.tobytes()
        assert one.labels.tolist() == other.labels.tolist()
        assert one.groups.tolist() == other.groups.tolist()


def test_groups_that_are_not_of_these_scans_are_refused() -> None:
    with pytest.raises(ValueError, match="every scan has a group, got 2 of 3 scans"):
        predictions("a", np.array([0.1, 0.2, 0.3]), np.array([0, 1, 0]), np.array([0, 1]))
