"""What hospitals answer to an evaluation: lies are named and left out, and no honest figure changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lying_answers import REFUSED_LIES, LyingPlan

from fedplatform.core.messages import HospitalState, Predictions, RoundReport
from fedplatform.core.tasks import TaskName
from fedplatform.experiments.engine import ServerRole, cohort_plan
from fedplatform.experiments.experiment import Experiment
from fedplatform.federated.answers import LEEWAY, Taken, bad_form, of_sender, taken
from fedplatform.federated.cohort import InProcessCohort

LIAR = "hospital-02"


def answer(name: str = "a", scans: int = 4, **changes: object) -> Predictions:
    right = Predictions(name, "test", np.full((scans, 2), 0.5, np.float32), np.arange(scans) % 2, 0.7)
    return replace(right, **changes)  # type: ignore[arg-type]


def checked(*answers: Predictions, announced: dict[str, int] | None = None, task: TaskName = "multiclass") -> Taken:
    told = {"a": 10, "b": 10, "c": 10}
    return taken(answers, num_classes=2, task=task, announced=announced or {}, trained=told)


def played(experiment: Experiment, shards: Path, folder: Path, lie: str) -> list[RoundReport]:
    plan = cohort_plan(experiment, shards, state_folder=folder)
    cohort = InProcessCohort(LyingPlan.of(plan, liar=LIAR, lie=lie) if lie else plan)
    return list(ServerRole(experiment, shards, cohort).reports())


@pytest.fixture(scope="module")
def honest(small: Experiment, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[RoundReport]:
    return played(small.replace(attack="none", byzantine=0), shards, tmp_path_factory.mktemp("honest"), "")


@pytest.mark.parametrize("lie", REFUSED_LIES)
def test_a_hospital_that_lies_in_its_answer_changes_no_honest_figure_and_ends_no_run(
    honest: list[RoundReport], small: Experiment, shards: Path, tmp_path: Path, lie: str
) -> None:
    reports = played(small.replace(attack="none", byzantine=0), shards, tmp_path, lie)
    assert len(reports) == small.rounds
    for report, other in zip(reports, honest, strict=True):
        silent = [record.hospital_id for record in other.without_answer]  # one has no test scans
        assert LIAR not in silent
        assert [record.hospital_id for record in report.without_answer] == sorted([LIAR, *silent])
        liar = next(record for record in report.hospitals if record.hospital_id == LIAR)
        assert liar.state is HospitalState.UNJUDGED
        assert REFUSED_LIES[lie][1] in liar.reason
        assert "\n" not in liar.reason
        true = {record.hospital_id: (record.accuracy, record.loss) for record in other.hospitals}
        for record in report.hospitals:
            if record.hospital_id != LIAR:
                np.testing.assert_array_equal((record.accuracy, record.loss), true[record.hospital_id])
        known = [accuracy for name, (accuracy, _) in true.items() if name not in (LIAR, *silent)]
        assert report.over_hospitals("accuracy") == pytest.approx(np.mean(known))
        assert np.isfinite([report.loss, report.accuracy, report.validation_loss]).all()


@pytest.mark.parametrize("loss", [float("nan"), 1e308, -5.0])
def test_the_loss_is_computed_from_the_probabilities_and_not_believed(loss: float) -> None:
    (found,) = checked(answer(loss=loss)).predictions
    assert found.loss == pytest.approx(np.log(2))


def test_later_answers_hold_no_more_scans_than_the_first() -> None:
    first = checked(answer(scans=4), answer("b", scans=6))
    assert first.announced == {"a/test": 4, "b/test": 6}
    later = checked(answer(scans=5), answer("b", scans=3), announced=dict(first.announced))
    assert later.predictions[0].failure == "its answer is refused: it holds 5 scans; it announced 4"
    assert not later.predictions[1].failure
    assert later.announced == first.announced


def test_a_large_hospital_is_not_taken_for_one_that_invents_scans() -> None:
    answers = [answer("a", scans=10 * LEEWAY), answer("b"), answer("c")]
    assert not any(one.failure for one in checked(*answers).predictions)
    assert checked(answer("a", scans=10 * LEEWAY + 1), answer("b"), answer("c")).predictions[0].failure


def test_a_network_that_names_no_class_is_judged_by_a_loss_within_bounds() -> None:
    bare = np.zeros((4, 0), np.float32)
    good = [answer(name, probabilities=bare, loss=3.0) for name in "ab"]
    found = checked(*good, answer("c", probabilities=bare, loss=1e308)).predictions
    assert [one.loss for one in found[:2]] == [3.0, 3.0]
    assert "a loss is at most" in found[2].failure
    assert "most hospitals name none" in checked(*good, answer("c")).predictions[2].failure


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"probabilities": "much"}, "probabilities are numbers"),
        ({"labels": np.array(["ill"] * 4)}, "labels are numbers"),
        ({"labels": np.array([0, 1, 2, 0])}, "one of 2 classes"),
        ({"groups": np.array([0, 1, 2, 4])}, "groups number the patients"),
        ({"loss": "low"}, "a loss is a number"),
        ({"probabilities": np.full((4, 3), 1 / 3, np.float32)}, r"shapes \(m, 2\)"),
        ({"subgroups": {"sex": np.array(["f"])}}, "for each of 4 scans"),
        ({"subgroups": {"sex": [1, 2, 3, 4]}}, "subgroups are words"),
    ],
)
def test_what_is_no_answer_is_refused_in_words(changes: dict[str, object], said: str) -> None:
    (found,) = checked(answer(**changes)).predictions
    assert found.failure.startswith("its answer is refused: ")
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found.failure)


def test_findings_need_not_sum_to_one_and_classes_must() -> None:
    rows = np.array([[0.9, 0.8], [0.1, 0.2]], np.float32)
    labels = np.array([[1, 1], [0, 0]])
    assert not bad_form(rows, labels, np.arange(2), 0.5, num_classes=2, task="multilabel")
    assert "sum to 1" in bad_form(rows, np.array([0, 1]), np.arange(2), 0.5, num_classes=2, task="ordinal")


@pytest.mark.parametrize("said", [None, 7, [answer(), answer()], [answer("b")], ["a"], []])
def test_an_answer_of_another_kind_or_in_anothers_name_is_its_senders_fault(said: object) -> None:
    (found,) = of_sender("a", said, ["test"])
    assert (found.hospital_id, found.role) == ("a", "test")
    assert found.failure.startswith("its answer is refused: ")
