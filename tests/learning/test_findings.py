"""Figures of findings and grades against slow definitions, and against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score
from torch import nn
from torch.nn import functional

from fedplatform.core.messages import Predictions
from fedplatform.core.seeding import torch_generator
from fedplatform.core.tasks import counts_by_answer
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.federated.selection import score_of
from fedplatform.learning.metrics import calibration_error, judge, mean_absolute_error, quadratic_kappa
from fedplatform.learning.models import SmallCnn
from fedplatform.learning.models.classifier import log_probabilities_of_grades
from fedplatform.learning.site_figures import POOLED, figures_by_site
from fedplatform.learning.training import Batch, BinaryCrossEntropy, Ordinal


def answered(n: int, k: int, *, seed: int = 0, signal: float = 1.0, site: str = "a") -> Predictions:
    """Probabilities that know something of each finding, the first being the most frequent."""
    random = np.random.default_rng(seed)
    labels = (random.random((n, k)) < np.linspace(0.6, 0.2, k)).astype(np.int64)
    scores = 1 / (1 + np.exp(-(random.normal(size=(n, k)) + signal * (2 * labels - 1))))
    return Predictions(site, "test", scores.astype(np.float32), labels, 0.3, groups=np.arange(n) // 2)


def test_figures_of_findings_are_means_over_the_findings_by_definition() -> None:
    one = answered(200, 4)
    figures = judge([one], num_classes=4, task="multilabel")
    probabilities, labels = one.probabilities.astype(np.float64), one.labels
    areas, balanced, f1, right = [], [], [], []
    for finding in range(4):
        there, said = labels[:, finding] == 1, probabilities[:, finding] > 0.5
        pairs = [
            1.0 if high > low else 0.5 if high == low else 0.0
            for high in probabilities[there, finding]
            for low in probabilities[~there, finding]
        ]
        areas.append(np.mean(pairs))
        balanced.append((said[there].mean() + (~said)[~there].mean()) / 2)
        f1.append(f1_score(there, said))
        right.append((said == there).mean())
    assert figures.label_auc == pytest.approx(areas)
    assert figures.label_auc == pytest.approx([roc_auc_score(labels[:, j], probabilities[:, j]) for j in range(4)])
    assert figures.auc == pytest.approx(np.mean(areas))
    assert figures.balanced_accuracy == pytest.approx(np.mean(balanced))
    assert figures.macro_f1 == pytest.approx(np.mean(f1))
    assert figures.accuracy == pytest.approx(np.mean(right))
    flat = np.stack([1 - probabilities.reshape(-1), probabilities.reshape(-1)], axis=1)
    assert figures.calibration_error == pytest.approx(calibration_error(flat, labels.reshape(-1)))
    assert figures.loss == 0.3


def test_a_finding_that_no_scan_has_is_left_out_and_spoils_no_mean() -> None:
    one = answered(100, 3)
    one.labels[:, 1] = 0
    figures = judge([one], num_classes=3, task="multilabel")
    kept = [roc_auc_score(one.labels[:, j], one.probabilities[:, j]) for j in (0, 2)]
    assert figures.auc == pytest.approx(np.mean(kept))
    assert np.isnan(figures.label_auc[1])
    assert np.isfinite([figures.balanced_accuracy, figures.macro_f1, figures.accuracy]).all()
    everybody = one.labels.copy()
    everybody[:] = 0
    nothing = Predictions("a", "test", one.probabilities, everybody, 0.1)
    figures = judge([nothing], num_classes=3, task="multilabel")
    assert np.isnan([figures.auc, figures.balanced_accuracy, figures.macro_f1]).all()
    assert np.isfinite(figures.accuracy)


def test_hospitals_that_could_not_answer_or_have_no_scans_are_no_part_of_the_figures() -> None:
    one = answered(50, 2)
    none = Predictions("b", "test", np.zeros((0, 2), np.float32), np.zeros((0, 2), np.int64), float("nan"))
    pooled = judge([one, none, *Predictions.failed("c", ["test"], "it broke")], num_classes=2, task="multilabel")
    assert pooled.auc == judge([one], num_classes=2, task="multilabel").auc
    empty = judge([none], num_classes=2, task="multilabel")
    assert np.isnan(empty.auc)
    assert empty.confusion.shape == (4, 4)
    assert np.isnan(empty.balanced_accuracy)
    assert score_of(empty) is None


def test_the_best_round_is_chosen_by_balanced_accuracy_over_the_findings() -> None:
    figures = judge([answered(200, 3)], num_classes=3, task="multilabel")
    score = score_of(figures)
    assert score is not None
    assert score[0] == pytest.approx(figures.balanced_accuracy)


def test_every_finding_has_its_figures_at_every_site_with_intervals_over_patients() -> None:
    some, others = answered(120, 3, site="a"), answered(120, 3, seed=1, site="b", signal=0.1)
    first, second, pooled = figures_by_site([some, others])
    assert (first.site, second.site, pooled.site) == ("a", "b", POOLED)
    assert first.class_counts == tuple(some.labels.sum(axis=0))
    for number, finding in enumerate(first.findings):
        there, said = some.labels[:, number] == 1, some.probabilities[:, number] > 0.5
        assert finding.scans == there.sum()
        assert finding.auc.value == pytest.approx(roc_auc_score(there, some.probabilities[:, number]))
        assert finding.auc.low < finding.auc.value < finding.auc.high
        assert finding.sensitivity == pytest.approx(said[there].mean())
        assert finding.specificity == pytest.approx((~said)[~there].mean())
        assert finding.accuracy == pytest.approx((said == there).mean())
        assert finding.balanced_accuracy.value == pytest.approx((finding.sensitivity + finding.specificity) / 2)
        assert finding.balanced_accuracy.low < finding.balanced_accuracy.value < finding.balanced_accuracy.high
    assert first.auc.value == pytest.approx(np.mean([one.auc.value for one in first.findings]))
    assert first.auc.low < first.auc.value < first.auc.high
    assert second.auc.value < first.auc.value
    assert np.isnan(first.sensitivity)
    widths = [one.auc.high - one.auc.low for one in first.findings]
    assert first.auc.high - first.auc.low < max(widths), "a mean over findings is surer than each of them"


def test_a_site_without_a_finding_keeps_the_mean_of_the_others() -> None:
    one = answered(120, 3)
    one.labels[:, 2] = 0
    (site,) = figures_by_site([one])
    assert not site.findings[2].is_judged
    assert np.isnan(site.findings[2].sensitivity)
    assert site.findings[2].specificity > 0
    assert site.auc.value == pytest.approx(np.mean([finding.auc.value for finding in site.findings[:2]]))
    assert np.isfinite(site.auc.low)
    one.labels[:] = 1
    (site,) = figures_by_site([one])
    assert np.isnan([site.auc.value, site.auc.low, site.balanced_accuracy.value]).all()


# Grades


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_quadratic_kappa_and_the_absolute_error_are_those_of_their_definitions(pairs: list[tuple[int, int]]) -> None:
    labels, answers = (np.array(column) for column in zip(*pairs, strict=True))
    confusion = np.zeros((4, 4), np.int64)
    np.add.at(confusion, (labels, answers), 1)
    assert mean_absolute_error(confusion) == pytest.approx(np.abs(labels - answers).mean())
    if len({*labels.tolist(), *answers.tolist()}) == 1:
        assert np.isnan(quadratic_kappa(confusion))
    else:
        wanted = cohen_kappa_score(labels, answers, weights="quadratic", labels=range(4))
        assert quadratic_kappa(confusion) == pytest.approx(wanted)


def test_grades_are_judged_by_kappa_where_the_classes_are_ordered_and_only_there() -> None:
    probabilities = np.float32(np.eye(4)[[0, 1, 2, 2, 3, 1]])
    one = Predictions("a", "test", probabilities, np.array([0, 1, 2, 3, 3, 2]), 0.1)
    figures = judge([one], num_classes=4, task="ordinal")
    assert figures.quadratic_kappa == pytest.approx(
        cohen_kappa_score(one.labels, [0, 1, 2, 2, 3, 1], weights="quadratic")
    )
    assert figures.mean_absolute_error == pytest.approx(2 / 6)
    plain = judge([one], num_classes=4)
    assert np.isnan([plain.quadratic_kappa, plain.mean_absolute_error]).all()
    assert (plain.accuracy, plain.auc, plain.macro_f1) == (figures.accuracy, figures.auc, figures.macro_f1)
    assert np.isnan(judge([], num_classes=4, task="ordinal").mean_absolute_error)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=6))
def test_grades_have_a_distribution_whose_tails_are_products_of_the_conditional_answers(borders: list[float]) -> None:
    logits = torch.tensor([borders])
    found = log_probabilities_of_grades(logits)[0].exp().double().numpy()
    beyond = [1 / (1 + np.exp(-value)) for value in borders]
    tails = np.array([np.prod(beyond[:j]) for j in range(len(borders) + 1)])
    slow = np.append(tails[:-1] - tails[1:], tails[-1])
    assert found == pytest.approx(slow, abs=1e-6)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert (found >= 0).all()


def test_the_ordinal_loss_is_the_sum_of_binary_losses_over_the_questions_that_a_grade_answers() -> None:
    network = Ordinal().network(SmallCnn(width=4), channels=1, num_classes=4, size=16)
    images = torch.rand(8, 1, 16, 16, generator=torch_generator(0, "images"))
    labels = torch.arange(8) % 4
    batch = Batch(images, labels, torch_generator(0))
    borders = network.body((images - 0.5) / 0.25)
    assert borders.shape == (8, 3)
    losses = []
    for row, label in zip(borders, labels.tolist(), strict=True):
        asked = row[: label + 1]  # given class > j - 1, which is so for every j up to the grade itself
        truth = torch.tensor([1.0] * label + [0.0])[: len(asked)]
        losses.append(functional.binary_cross_entropy_with_logits(asked, truth, reduction="sum"))
    torch.testing.assert_close(Ordinal().loss(network.train(), batch), torch.stack(losses).mean())
    network.eval()
    torch.testing.assert_close(Ordinal().probabilities(network, images).sum(dim=1), torch.ones(8))


def test_the_ordinal_gradient_lifts_the_borders_below_a_grade_lowers_its_own_and_leaves_the_rest() -> None:
    borders = torch.zeros(4, 3, requires_grad=True)
    functional.cross_entropy(log_probabilities_of_grades(borders), torch.arange(4)).backward()
    assert borders.grad is not None
    assert borders.grad.sign().tolist() == [[1, 0, 0], [-1, 1, 0], [-1, -1, 1], [-1, -1, -1]]


# Findings


class Linear(nn.Module):
    """Logits that are the pixels themselves."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def test_binary_cross_entropy_is_the_mean_over_scans_and_findings_and_balanced_weighs_both_answers_alike() -> None:
    logits = torch.randn(12, 1, 1, 3, generator=torch_generator(0, "logits"))
    labels = torch.tensor([[1, 0, 1]] * 3 + [[0, 0, 1]] * 9)
    counts = torch.tensor(counts_by_answer(labels.numpy(), 3), dtype=torch.float32)
    batch = Batch(logits, labels, torch_generator(0), counts=counts)
    each = functional.binary_cross_entropy_with_logits(logits.flatten(1), labels.float(), reduction="none")
    torch.testing.assert_close(BinaryCrossEntropy().loss(Linear(), batch), each.mean())
    torch.testing.assert_close(BinaryCrossEntropy().plain_loss(Linear(), batch), each.mean())
    # The first finding: 3 with, 9 without; the second no scan has, the third all have.
    weights = torch.ones(12, 3)
    weights[:, 0] = torch.where(labels[:, 0] > 0, 12 / 6, 12 / 18)
    balanced = BinaryCrossEntropy(class_weights="balanced")
    torch.testing.assert_close(balanced.loss(Linear(), batch), (weights * each).mean())
    torch.testing.assert_close(balanced.probabilities(Linear(), logits), torch.sigmoid(logits.flatten(1)))
    with pytest.raises(ValueError, match="class_weights is none or balanced, got 'uneven'"):
        BinaryCrossEntropy(class_weights="uneven")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"task": "multilabel", "objective": "cross_entropy(focal=2.0)"}, "task multilabel takes binary_cross_entropy"),
        ({"task": "multilabel", "objective": "trades(epsilon=0.01)"}, "objective trades learns task multiclass or"),
        (
            {"task": "multilabel", "objective": "adversarial(epsilon=0.01)"},
            "task multilabel takes binary_cross_entropy",
        ),
        ({"task": "multilabel", "model": "experts"}, "model experts mixes probabilities of one class out of k"),
        ({"task": "ordinal", "model": "experts"}, "model experts mixes probabilities of one class out of k"),
        ({"objective": "ordinal"}, "task multiclass takes cross_entropy"),
        ({"objective": "binary_cross_entropy"}, "task multiclass takes cross_entropy"),
        ({"task": "multilable"}, "task: Input should be 'multiclass', 'multilabel' or 'ordinal'"),
    ],
)
def test_an_objective_that_does_not_learn_the_task_is_refused_in_one_sentence(
    settings: dict[str, object], said: str
) -> None:
    with pytest.raises(ExperimentError) as refused:
        Experiment.from_settings(settings)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("task", "objective"),
    [("multiclass", "cross_entropy"), ("multilabel", "binary_cross_entropy"), ("ordinal", "ordinal")],
)
def test_a_task_brings_its_objective_and_comes_back_from_its_settings(task: str, objective: str) -> None:
    experiment = Experiment.from_settings({"task": task})
    assert str(experiment.settings()["objective"]).partition("(")[0] == objective
    assert Experiment.from_settings(experiment.settings()) == experiment
    assert Experiment.from_settings({"task": "ordinal", "objective": "cross_entropy"}).task == "ordinal"
