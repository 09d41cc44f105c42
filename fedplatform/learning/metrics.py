"""Figures of merit from predictions: accuracy, macro-F1, AUC, loss and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score

from fedplatform.core.messages import NAN, Predictions


@dataclass(frozen=True, eq=False)
class Figures:
    """How good a set of predictions is; every figure is NaN where there is nothing to judge.

    ``auc`` is the area under the ROC curve, one class against the rest and averaged over classes where there are more
    than two. ``confusion`` is (num_classes, num_classes): rows the truth, columns the answer.
    ``calibration_error`` is of :func:`calibration_error`.
    """

    accuracy: float
    macro_f1: float
    auc: float
    loss: float
    confusion: np.ndarray
    calibration_error: float = NAN


def judge(predictions: Sequence[Predictions], *, num_classes: int) -> Figures:
    """Pool predictions, every scan counting once, and judge them; of answers that name no class, the loss alone."""
    labels = np.concatenate([p.labels for p in predictions]) if predictions else np.zeros(0, np.int64)
    nan, nothing = float("nan"), np.zeros((num_classes, num_classes), np.int64)
    if not len(labels):
        return Figures(nan, nan, nan, nan, nothing)
    loss = float(sum(p.loss * len(p.labels) for p in predictions if len(p.labels)) / len(labels))
    scored = [p.probabilities for p in predictions if len(p.labels)]
    if not scored[0].shape[1]:
        return Figures(nan, nan, nan, loss, nothing)
    probabilities = np.concatenate(scored).astype(np.float64)
    answers = probabilities.argmax(axis=1)
    classes = np.arange(num_classes)
    return Figures(
        accuracy=float((answers == labels).mean()),
        macro_f1=float(f1_score(labels, answers, labels=classes, average="macro", zero_division=0.0)),
        auc=area_under_roc(probabilities, labels),
        loss=loss,
        confusion=confusion_matrix(labels, answers, labels=classes),
        calibration_error=calibration_error(probabilities, labels),
    )


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
