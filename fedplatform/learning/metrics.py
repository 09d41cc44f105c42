"""Figures of merit from predictions: accuracy, macro-F1, AUC, loss and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score

from fedplatform.core.messages import Predictions


@dataclass(frozen=True, eq=False)
class Figures:
    """How good a set of predictions is; every figure is NaN where there is nothing to judge.

    ``auc`` is the area under the ROC curve, one class against the rest and averaged over classes where there are more
    than two. ``confusion`` is (num_classes, num_classes): rows the truth, columns the answer.
    """

    accuracy: float
    macro_f1: float
    auc: float
    loss: float
    confusion: np.ndarray


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
    )


def area_under_roc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """AUC of probabilities (m, num_classes); macro one-against-rest for more than two classes, NaN if one is absent."""
    num_classes = probabilities.shape[1]
    if len(np.unique(labels)) < num_classes or not np.isfinite(probabilities).all():
        return float("nan")
    if num_classes == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    rows = probabilities / probabilities.sum(axis=1, keepdims=True)
    return float(roc_auc_score(labels, rows, multi_class="ovr", average="macro"))
