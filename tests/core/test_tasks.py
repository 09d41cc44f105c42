"""What a label is, in each of the three tasks, and what holds for all of them."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedplatform.core.messages import Predictions, RoundReport, balanced_accuracy
from fedplatform.core.rounds import predictions_of, predictions_table, reports_of, tables_of
from fedplatform.core.tasks import (
    NO_FINDING,
    TASKS,
    TaskName,
    as_questions,
    certain,
    confusions,
    counts_by_answer,
    distinct,
    flipped,
    kind_names,
    kinds_of,
    mean_loss,
    misfit,
    needed_everywhere,
    places_in_tally,
    with_label,
    words_of,
)

FINDINGS = arrays.arrays(np.int64, st.tuples(st.integers(1, 20), st.integers(1, 5)), elements=st.integers(0, 1))


def test_every_task_has_a_name_and_its_objective() -> None:
    assert tuple(TASKS) == get_args(TaskName)
    assert all(name == task.name for name, task in TASKS.items())


@given(FINDINGS)
def test_a_scan_is_stratified_by_the_rarest_finding_that_it_has(labels: np.ndarray) -> None:
    counts = labels.sum(axis=0)
    for row, kind in zip(labels, kinds_of(labels), strict=True):
        found = np.flatnonzero(row)
        if len(found):
            assert kind in found
            assert counts[kind] == counts[found].min()
        else:
            assert kind == labels.shape[1]


def test_a_class_is_its_own_kind() -> None:
    labels = np.array([2, 0, 1])
    assert kinds_of(labels) is labels
    assert kind_names(("a", "b"), multilabel=False) == ("a", "b")
    assert kind_names(("a", "b"), multilabel=True) == ("a", "b", NO_FINDING)


@given(FINDINGS)
def test_flipping_twice_is_not_flipping_and_once_turns_every_finding(labels: np.ndarray) -> None:
    turned = flipped(labels, labels.shape[1])
    assert (turned + labels == 1).all()
    assert (flipped(turned, labels.shape[1]) == labels).all()


@given(FINDINGS)
def test_a_tally_counts_every_scan_at_its_findings_or_at_the_end(labels: np.ndarray) -> None:
    tally = np.zeros(labels.shape[1] + 1, np.int64)
    for row in labels:
        tally[places_in_tally(row, labels.shape[1])] += 1
    assert tally[:-1].tolist() == labels.sum(axis=0).tolist()
    assert tally[-1] == (labels.sum(axis=1) == 0).sum()
    assert counts_by_answer(labels, labels.shape[1]).sum(axis=1).tolist() == [len(labels)] * labels.shape[1]


def test_a_label_gets_a_class_in_place_of_its_own_and_a_finding_beside_them() -> None:
    assert with_label(np.array([0, 2]), 1).tolist() == [1, 1]
    assert with_label(np.array([[1, 0], [0, 0]]), 1).tolist() == [[1, 1], [0, 1]]


def test_labels_have_words() -> None:
    assert words_of(np.int64(1), ("a", "b")) == "b"
    assert words_of(np.array([1, 0, 1]), ("a", "b", "c")) == "a, c"
    assert words_of(np.array([0, 0, 0]), ("a", "b", "c")) == NO_FINDING


def test_the_loss_is_cross_entropy_by_definition() -> None:
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    assert mean_loss(probabilities, np.array([0, 1])) == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2)
    found = np.array([[1, 0, 0], [0, 1, 0]])
    each = [[0.5, 0.75, 0.75], [0.9, 0.8, 0.9]]
    assert mean_loss(probabilities, found) == pytest.approx(-np.log(each).mean())
    assert np.isnan(mean_loss(probabilities[:0], found[:0]))


def test_whoever_is_certain_is_right_in_every_question() -> None:
    for labels in (np.array([2, 0, 1]), np.array([[1, 0, 1], [0, 0, 0]])):
        probabilities, answers = as_questions(certain(labels, 3), labels)
        assert (probabilities.argmax(axis=1) == answers).all()


def test_equal_labels_have_one_number_and_unlike_ones_two() -> None:
    numbers = distinct(np.array([[1, 0], [0, 1], [1, 0], [1, 1]]))
    assert numbers[0] == numbers[2]
    assert len(set(numbers.tolist())) == 3


def test_a_part_needs_every_class_and_no_finding() -> None:
    classes = needed_everywhere(np.array([0, 2, 2]), ("a", "b", "c"))
    assert [(words, here.tolist()) for words, here in classes] == [
        ("class 'a'", [True, False, False]),
        ("class 'c'", [False, True, True]),
    ]
    assert [words for words, _ in needed_everywhere(np.array([[0, 1]]), ("a", "b"))] == ["the data set"]


def test_data_of_another_task_are_told_in_one_sentence() -> None:
    assert not misfit("multilabel", multilabel=True)
    assert not misfit("ordinal", multilabel=False)
    assert "--task multilabel" in misfit("multiclass", multilabel=True)
    assert "a column of 0 and 1 for each finding" in misfit("multilabel", multilabel=False)


def test_a_finding_without_both_answers_is_left_out_of_balanced_accuracy_and_not_of_the_majority() -> None:
    # The first finding: 3 of 4 with, 5 of 6 without answered rightly; the second: no scan has it.
    confusion = ((5, 1, 0, 0), (1, 3, 0, 0), (0, 0, 10, 0), (0, 0, 0, 0))
    assert confusions(confusion, findings=2) == [[[5, 1], [1, 3]], [[10, 0], [0, 0]]]
    assert balanced_accuracy(confusion, findings=2) == pytest.approx((5 / 6 + 3 / 4) / 2)
    report = RoundReport(1, 0.9, 0.5, 0.9, 0.2, 0.9, 0, 0, 0, (), confusion=confusion, label_auc=(0.9, float("nan")))
    assert report.balanced_accuracy == pytest.approx((5 / 6 + 3 / 4) / 2)
    assert report.majority == pytest.approx((0.6 + 1.0) / 2)
    assert np.isnan(balanced_accuracy(((0, 0), (0, 3)), findings=1))


def test_figures_of_findings_come_out_of_their_table_as_they_went_in() -> None:
    report = RoundReport(
        3, 0.9, 0.5, 0.9, 0.2, 0.9, 0, 0, 0, (), confusion=((5, 1), (1, 3)), label_auc=(0.75, float("nan"))
    )
    tables = tables_of([report])
    (read,) = reports_of(tables["rounds.parquet"], tables["hospitals.parquet"])
    assert read.label_auc[0] == 0.75
    assert np.isnan(read.label_auc[1])
    assert read.confusion == report.confusion


def test_predictions_of_findings_come_out_of_their_table_as_they_went_in() -> None:
    labels = np.array([[1, 0], [0, 0], [1, 1]])
    sent = Predictions("a", "test", np.float32([[0.9, 0.2], [0.1, 0.3], [0.8, 0.7]]), labels, 0.5)
    failed = Predictions.failed("b", ["test"], "it broke")
    report = RoundReport(7, 0.5, 0.5, 0.5, 0.5, 0.5, 0, 0, 0, (), tests=(sent, *failed))
    (read,) = predictions_of(predictions_table(report), round_number=7)
    assert read.labels.tolist() == labels.tolist()
    assert read.probabilities.tobytes() == sent.probabilities.tobytes()
