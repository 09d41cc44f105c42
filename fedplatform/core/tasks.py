"""What a task is: one class a scan, any number of findings, or a grade. Nothing else tells the three apart.

A label is a class number where a scan has one class or grade, so that labels are (n,) int64 of 0 to k - 1. Where it has
any number of findings, labels are (n, k) int64, 1 where the scan has the finding and 0 where not. The functions below
take either; what holds for both never asks which one it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
TaskName = Literal["multiclass", "multilabel", "ordinal"]

NO_FINDING = "no finding"
LEAST_PROBABILITY = 1e-12  # of the right answer in a loss


@dataclass(frozen=True)
class Task:
    """A task: the objective that learns it where none is named, what is judged, and what logits mean."""

    name: TaskName
    objective: str
    answer: str  # what the logits (n, classes) of an exported network are
    is_multilabel: bool = False
    is_ordered: bool = False

    def row(self, num_classes: int) -> tuple[int, ...]:
        """The shape of one scan's label."""
        return (num_classes,) if self.is_multilabel else ()

    def values(self, num_classes: int) -> range:
        """What a number in a label may be."""
        return range(2 if self.is_multilabel else num_classes)


ONE_CLASS = "logits (n, classes); softmax gives probabilities"
TASKS: dict[str, Task] = {
    "multiclass": Task("multiclass", "cross_entropy", ONE_CLASS),
    "multilabel": Task(
        "multilabel",
        "binary_cross_entropy",
        "logits (n, classes); sigmoid gives the probability of each finding by itself",
        is_multilabel=True,
    ),
    "ordinal": Task("ordinal", "ordinal", ONE_CLASS, is_ordered=True),
}


def is_multilabel(labels: np.ndarray) -> bool:
    """Whether a scan has any number of findings, and not one class."""
    return labels.ndim == 2


def task_of(labels: np.ndarray) -> TaskName:
    """The task that the form of labels says; grades look like classes."""
    return "multilabel" if is_multilabel(labels) else "multiclass"


def misfit(task: TaskName, *, multilabel: bool) -> str:
    """What to say where data are not of a task; empty where they are."""
    if TASKS[task].is_multilabel == multilabel:
        return ""
    if multilabel:
        return (
            f"these data give a scan any number of findings, and task {task} takes one class a scan: --task multilabel"
        )
    return f"these data give a scan one class, and task {task} takes a column of 0 and 1 for each finding"


def kinds_of(labels: np.ndarray) -> Integers:
    """One number a scan, by which scans are stratified and sampled, (n,).

    It is the class; of several findings it is the rarest one that the scan has, and k where it has none. Rare findings
    come first because they are the ones that a split can lose, as in iterative stratification (Sechidis et al., ECML
    PKDD 2011).
    """
    if not is_multilabel(labels):
        return labels
    rarest_first = np.argsort(labels.sum(axis=0), kind="stable")
    found = labels[:, rarest_first] > 0
    kinds: Integers = np.where(found.any(axis=1), rarest_first[found.argmax(axis=1)], labels.shape[1])
    return kinds


def num_kinds(labels: np.ndarray, num_classes: int) -> int:
    """How many kinds there can be."""
    return num_classes + is_multilabel(labels)


def kind_names(classes: Sequence[str], *, multilabel: bool) -> tuple[str, ...]:
    """The names of the kinds of :func:`kinds_of`, and of the counts of :func:`tally`, in order."""
    return (*classes, NO_FINDING) if multilabel else tuple(classes)


def has(labels: np.ndarray, label: int) -> npt.NDArray[np.bool_]:
    """Which scans are of a class, or have a finding, (n,)."""
    found: npt.NDArray[np.bool_] = labels[:, label] > 0 if is_multilabel(labels) else labels == label
    return found


def with_label(labels: np.ndarray, label: int) -> np.ndarray:
    """The same labels where each scan is of a class, or has a finding beside those that it has."""
    changed = labels.copy()
    if is_multilabel(labels):
        changed[:, label] = 1
    else:
        changed[:] = label
    return changed


def flipped(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The wrong labels of label flipping: class y becomes k - 1 - y, and every finding is turned round."""
    turned: np.ndarray = (1 if is_multilabel(labels) else num_classes - 1) - labels
    return turned


def counts_by_class(labels: np.ndarray, num_classes: int) -> Integers:
    """Scans of each class, or with each finding, (k,)."""
    if is_multilabel(labels):
        counts: Integers = labels.sum(axis=0, dtype=np.int64)
        return counts
    return np.bincount(labels, minlength=num_classes)


def counts_by_answer(labels: np.ndarray, num_classes: int) -> Integers:
    """Scans of each answer to a question: of each class (k,), or without and with each finding (k, 2)."""
    counts = counts_by_class(labels, num_classes)
    return np.stack([len(labels) - counts, counts], axis=1) if is_multilabel(labels) else counts


def places_in_tally(label: np.ndarray | np.int64, num_classes: int) -> np.ndarray:
    """Where one scan counts in a tally: at its class, or at each of its findings, or at the end where it has none."""
    if not np.ndim(label):
        return np.array([label])
    found = np.flatnonzero(label)
    return found if len(found) else np.array([num_classes])


def needed_everywhere(labels: np.ndarray, classes: Sequence[str]) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """What training, validation and test must each have some of, in words and as (n,) bool.

    That is every class that occurs. A finding may be as rare as it likes: without it a part is judged by the others.
    """
    if is_multilabel(labels):
        yield "the data set", np.ones(len(labels), np.bool_)
        return
    for label in np.flatnonzero(counts_by_class(labels, len(classes))).tolist():
        yield f"class {classes[label]!r}", labels == label


def distinct(labels: np.ndarray) -> Integers:
    """A number for each scan, (n,), equal where the labels are equal."""
    if not is_multilabel(labels):
        return labels
    return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)


def mean_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy of probabilities (n, k), over scans or over scans and findings; NaN without scans."""
    if not len(labels):
        return float("nan")
    if is_multilabel(labels):
        chosen = np.where(labels > 0, probabilities, 1 - probabilities)
    else:
        chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(chosen, LEAST_PROBABILITY, 1.0)).mean())


def certain(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The probabilities (n, k) of whoever answers these labels and is sure of it."""
    if is_multilabel(labels):
        return labels.astype(np.float32)
    rows: np.ndarray = np.eye(num_classes, dtype=np.float32)[labels]
    return rows


def as_questions(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each question with its right answer: as they are, or yes or no of each scan's findings, (n k, 2), (n k,)."""
    if not is_multilabel(labels):
        return probabilities, labels
    yes = probabilities.reshape(-1)
    return np.stack([1 - yes, yes], axis=1), labels.reshape(-1)


def answers_of(probabilities: np.ndarray, *, multilabel: bool) -> Integers:
    """What probabilities (n, k) answer: the likeliest class (n,), or each finding above one half, (n, k)."""
    answers: Integers = (probabilities > 0.5).astype(np.int64) if multilabel else probabilities.argmax(axis=1)
    return answers


def words_of(label: np.ndarray | np.int64, classes: Sequence[str]) -> str:
    """One scan's label by name: ``effusion, nodule``."""
    if not np.ndim(label):
        return classes[int(label)]
    return ", ".join(classes[found] for found in np.flatnonzero(label).tolist()) or NO_FINDING


def confusions(confusion: Sequence[Sequence[int]], *, findings: int) -> list[list[list[int]]]:
    """The confusion matrix of each question: the one of all classes, or the blocks (2, 2) of so many findings."""
    if not findings:
        return [[[*row] for row in confusion]]
    return [[[*row[2 * one : 2 * one + 2]] for row in confusion[2 * one : 2 * one + 2]] for one in range(findings)]
