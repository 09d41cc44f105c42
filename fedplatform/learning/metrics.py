"""Figures of merit from predictions, by task: accuracy, macro-F1, AUC, loss, confusion, and how far off a grade is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score

from fedplatform.core.messages import NAN, Predictions, balanced_accuracy
from fedplatform.core.tasks import TASKS, TaskName, answers_of, as_questions


@dataclass(frozen=True, eq=False)
class Figures:
    """How good a set of predictions is; every figure is NaN where there is nothing to judge.

    ``auc`` is the area under the ROC curve, one class against the rest and averaged over classes where there are more
    than two. ``confusion`` is (num_classes, num_classes): rows the truth, columns the answer.
    ``calibration_error`` is of :func:`calibration_error`.

    Where a scan has any number of findings, each is a question by itself, answered with yes above a probability of .5.
    Figures are means over findings: F1 over those that a scan has, AUC over those that some have and some have not,
    each in ``label_auc`` (NaN for the others). ``confusion`` has the findings' matrices (2, 2) along its diagonal. Of
    ordered classes, ``quadratic_kappa`` is Cohen's with quadratic weights, ``mean_absolute_error`` is in classes.
    """

    accuracy: float
    macro_f1: float
    auc: float
    loss: float
    confusion: np.ndarray
    calibration_error: float = NAN
    label_auc: tuple[float, ...] = ()
    quadratic_kappa: float = NAN
    mean_absolute_error: float = NAN

    @property
    def balanced_accuracy(self) -> float:
        """Of :func:`fedplatform.core.messages.balanced_accuracy`."""
        return balanced_accuracy(self.confusion.tolist(), findings=len(self.label_auc))


def judge(predictions: Sequence[Predictions], *, num_classes: int, task: TaskName = "multiclass") -> Figures:
    """Pool predictions, every scan counting once, and judge them; of answers that name no class, the loss alone."""
    answered = [one for one in predictions if len(one.labels)]
    if not answered:
        return _nothing(num_classes, task, loss=NAN)
    labels = np.concatenate([one.labels for one in answered])
    loss = float(sum(one.loss * len(one.labels) for one in answered) / len(labels))
    if not answered[0].probabilities.shape[1]:
        return _nothing(num_classes, task, loss=loss)
    probabilities = np.concatenate([one.probabilities for one in answered]).astype(np.float64)
    if TASKS[task].is_multilabel:
        return _of_findings(probabilities, labels, loss)
    figures = _of_classes(probabilities, labels, loss, num_classes=num_classes)
    if not TASKS[task].is_ordered:
        return figures
    kappa, error = quadratic_kappa(figures.confusion), mean_absolute_error(figures.confusion)
    return replace(figures, quadratic_kappa=kappa, mean_absolute_error=error)


def attack_success(predictions: Sequence[Predictions]) -> float:
    """The share of stamped scans that were answered with a backdoor's target; NaN where none was stamped.

    >>> one = Predictions("a", "test", np.zeros((4, 2)), np.zeros(4, np.int64), 0.5, stamped=4, hits=3)
    >>> attack_success([one])
    0.75
    """
    stamped = sum(one.stamped for one in predictions)
    return sum(one.hits for one in predictions) / stamped if stamped else NAN


def _nothing(num_classes: int, task: TaskName, *, loss: float) -> Figures:
    """The figures where no class was named."""
    findings = num_classes if TASKS[task].is_multilabel else 0
    side = 2 * findings or num_classes
    return Figures(NAN, NAN, NAN, loss, np.zeros((side, side), np.int64), label_auc=(NAN,) * findings)


def _of_classes(probabilities: np.ndarray, labels: np.ndarray, loss: float, *, num_classes: int) -> Figures:
    answers = answers_of(probabilities, multilabel=False)
    classes = np.arange(num_classes)
    return Figures(
        accuracy=float((answers == labels).mean()),
        macro_f1=float(f1_score(labels, answers, labels=classes, average="macro", zero_division=0.0)),
        auc=area_under_roc(probabilities, labels),
        loss=loss,
        confusion=confusion_matrix(labels, answers, labels=classes),
        calibration_error=calibration_error(probabilities, labels),
    )


def _of_findings(probabilities: np.ndarray, labels: np.ndarray, loss: float) -> Figures:
    answers, findings = answers_of(probabilities, multilabel=True), range(labels.shape[1])
    blocks = [confusion_matrix(labels[:, one], answers[:, one], labels=[0, 1]) for one in findings]
    confusion = np.zeros((2 * len(findings), 2 * len(findings)), np.int64)
    for one, block in zip(findings, blocks, strict=True):
        confusion[2 * one : 2 * one + 2, 2 * one : 2 * one + 2] = block
    f1 = [2 * block[1, 1] / (block[0, 1] + block[1].sum() + block[1, 1]) for block in blocks if block[1].any()]
    areas = tuple(area_of_finding(probabilities[:, one], labels[:, one]) for one in findings)
    return Figures(
        accuracy=float((answers == labels).mean()),
        macro_f1=float(np.mean(f1)) if f1 else NAN,
        auc=mean_of_known(areas),
        loss=loss,
        confusion=confusion,
        calibration_error=calibration_error(*as_questions(probabilities, labels)),
        label_auc=areas,
    )


def area_of_finding(scores: np.ndarray, there: np.ndarray) -> float:
    """The AUC of one finding from probabilities (m,); NaN where all scans have it or none, or a score is no number."""
    if len(np.unique(there)) < 2 or not np.isfinite(scores).all():
        return NAN
    return float(roc_auc_score(there, scores))


def mean_of_known(values: Sequence[float]) -> float:
    """The mean of those that are numbers; NaN where none is."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else NAN


def quadratic_kappa(confusion: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights (Cohen, Psychological Bulletin 1968) of a confusion matrix (k, k).

    1 where every grade is right, 0 where answers are as far off as those of chance with the same shares; NaN where all
    scans have one grade and all answers name it.

    >>> round(quadratic_kappa(np.array([[8, 2, 0], [1, 8, 1], [0, 2, 8]])), 3)
    0.851
    """
    grades = np.arange(len(confusion))
    weights = (grades[:, None] - grades) ** 2
    total = confusion.sum()
    by_chance = (weights * np.outer(confusion.sum(axis=1), confusion.sum(axis=0))).sum() / total if total else 0
    return float(1 - (weights * confusion).sum() / by_chance) if by_chance else NAN


def mean_absolute_error(confusion: np.ndarray) -> float:
    """How many grades an answer is off in the mean, of a confusion matrix (k, k); NaN without scans.

    >>> mean_absolute_error(np.array([[1, 0, 1], [0, 2, 0], [0, 0, 0]]))
    0.5
    """
    grades = np.arange(len(confusion))
    return float((np.abs(grades[:, None] - grades) * confusion).sum() / confusion.sum()) if confusion.any() else NAN


@dataclass(frozen=True)
class Bin:
    """The scans whose confidence lies between two values: their share of all, mean confidence and accuracy."""

    share: float
    confidence: float
    accuracy: float


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[Bin]:
    """The bins of a reliability diagram, by rising confidence; empty ones are left out.

    Of probabilities (m, num_classes) and labels (m,); the confidence of a scan is its largest probability. There are 15
    bins, as usual, and of fewer than 600 scans down to 5, because a bin of a few scans says nothing.
    """
    bins = int(np.clip(len(labels) // 40, 5, 15))
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    found = []
    for number in np.unique(place):
        here = place == number
        found.append(Bin(float(here.mean()), float(confidence[here].mean()), float(right[here].mean())))
    return found


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error (Guo et al., ICML 2017): how far confidence is from accuracy, a mean over the bins.

    NaN without scans, or where an answer is no number.

    >>> round(calibration_error(np.array([[0.2, 0.8], [0.2, 0.8]]), np.array([1, 0])), 6)
    0.3
    """
    if not len(labels) or not np.isfinite(probabilities).all():
        return NAN
    return sum(abs(one.accuracy - one.confidence) * one.share for one in reliability(probabilities, labels))


def area_under_roc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """AUC of probabilities (m, num_classes); macro one-against-rest for more than two classes, NaN if one is absent."""
    num_classes = probabilities.shape[1]
    if len(np.unique(labels)) < num_classes or not np.isfinite(probabilities).all():
        return float("nan")
    if num_classes == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    rows = probabilities / probabilities.sum(axis=1, keepdims=True)
    return float(roc_auc_score(labels, rows, multi_class="ovr", average="macro"))
