"""What hospitals answer to an evaluation, checked as updates are: a bad answer is named and left out of all figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedplatform.core.messages import Predictions
from fedplatform.core.tasks import TASKS, TaskName, mean_loss

REFUSED = "its answer is refused"  # how the reason begins where a hospital answered, and not with predictions
ROUNDING = 0.01  # that a row of probabilities may be off one; bfloat16 needs it
LARGEST_LOSS = 1e6  # of a network that names no class, whose loss nobody else can compute
LEEWAY = 10  # times its training scans, or the median hospital's answer, before a first answer is taken for invented
FAILURE_LETTERS = 300  # of the reason that a hospital gives for having no predictions
MOST_SUBGROUPS = 100  # that scans may be told apart by


def of_sender(hospital_id: str, said: object, roles: Sequence[str]) -> list[Predictions]:
    """What a hospital answered, in each role once; of what is no such answer, the refusal in its place."""
    if not isinstance(said, Sequence) or not all(isinstance(one, Predictions) for one in said):
        return _refused(hospital_id, roles, f"predictions were due, it sent a {type(said).__name__} of something else")
    if [str(one.role) for one in said] != [str(role) for role in roles]:
        return _refused(hospital_id, roles, f"{', '.join(map(str, roles))} were due, one answer each")
    if any(one.hospital_id != hospital_id for one in said):
        return _refused(hospital_id, roles, "it answered in another hospital's name")
    return list(said)


def bad_form(
    probabilities: object, labels: object, groups: object, loss: object, *, num_classes: int, task: TaskName
) -> str:
    """What is wrong with the form of an answer, in words; empty where nothing is.

    ``probabilities`` are (m, num_classes), or (m, 0) of a network that names no class; ``labels`` (m,) or
    (m, num_classes) and ``groups`` (m,) integers.
    """
    row, values = TASKS[task].row(num_classes), TASKS[task].values(num_classes)
    for name, array, kind in (("probabilities", probabilities, "f"), ("labels", labels, "i"), ("groups", groups, "i")):
        if not isinstance(array, np.ndarray) or array.dtype.kind != kind:
            return f"{name} are numbers, got {getattr(array, 'dtype', type(array).__name__)}"
    if not isinstance(loss, float | int):
        return f"a loss is a number, got a {type(loss).__name__}"
    assert isinstance(probabilities, np.ndarray)
    assert isinstance(labels, np.ndarray)
    assert isinstance(groups, np.ndarray)
    fits = labels.shape == (0,) or (labels.ndim > 0 and labels.shape[1:] == row)  # (0,) without an answer
    scans = len(labels) if fits else -1
    if probabilities.shape not in ((scans, num_classes), (scans, 0)):
        form = f"(m, {', '.join(map(str, row))})" if row else "(m,)"
        return f"predictions have shapes (m, {num_classes}) and {form}, got {probabilities.shape} and {labels.shape}"
    if broken := probabilities.size - np.count_nonzero((probabilities >= 0) & (probabilities <= 1)):  # NaN is neither
        return f"a probability is between 0 and 1, got {broken} of {probabilities.size} that are not"
    if probabilities.shape[1] and not TASKS[task].is_multilabel:
        off = np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1)
        if (off > ROUNDING).any():
            return (
                f"probabilities of a scan sum to 1, got {np.count_nonzero(off > ROUNDING)} of {scans} rows that do not"
            )
    if not ((labels >= values.start) & (labels < values.stop)).all():
        return f"a label is {f'0 or 1 of each of {num_classes} findings' if row else f'one of {num_classes} classes'}"
    if groups.shape != (scans,) or not ((groups >= 0) & (groups < scans)).all():
        return "groups number the patients of the scans, from 0 and below their number"
    if scans and not probabilities.shape[1] and not abs(loss) <= LARGEST_LOSS:
        return f"a loss is at most {LARGEST_LOSS:g}, got {loss:g}"
    return ""


@dataclass(frozen=True)
class Taken:
    """The answers of a round as they count, and how many scans each hospital has announced, by ``hospital/role``."""

    predictions: list[Predictions]
    announced: Mapping[str, int]


def taken(
    answers: Sequence[Predictions],
    *,
    num_classes: int,
    task: TaskName,
    announced: Mapping[str, int],
    trained: Mapping[str, int],
) -> Taken:
    """Check the answers of a round; a bad one becomes the reason why it is none.

    A hospital's first good answer in a role announces how many scans it has there, and no later one may hold more. The
    first may hold ``LEEWAY`` times as many as it claims to have ``trained`` on, or as the median hospital answers for.
    The loss is computed here from the probabilities, and what a hospital says of it is not used. Whether the network
    names classes is what most hospitals say by their answers.
    """
    formed = [_with_form(one, num_classes=num_classes, task=task) for one in answers]
    good = [one for one in formed if not one.failure and len(one.labels)]
    names_classes = 2 * sum(one.probabilities.shape[1] > 0 for one in good) >= len(good)
    usual = {role: _lower_median([len(one.labels) for one in good if one.role == role]) for role in _roles(good)}
    announced, found = dict(announced), []
    for one in formed:
        if not one.failure and len(one.labels):
            key, scans = f"{one.hospital_id}/{one.role}", len(one.labels)
            most = announced.get(key, LEEWAY * max(trained.get(one.hospital_id, 0), usual[one.role]))
            complaint = ""
            if (one.probabilities.shape[1] > 0) != names_classes:
                others = "name classes" if names_classes else "name none"
                complaint = f"it has {one.probabilities.shape[1]} probabilities a scan, and most hospitals {others}"
            elif scans > most:
                limit = "it announced" if key in announced else "by its training scans and the other hospitals, at most"
                complaint = f"it holds {scans} scans; {limit} {most}"
            if complaint:
                one = _refused(one.hospital_id, [one.role], complaint)[0]
            else:
                announced.setdefault(key, scans)
                if names_classes:
                    one = replace(one, loss=mean_loss(one.probabilities, one.labels))
        found.append(one)
    return Taken(found, announced)


def in_one_line(words: str) -> str:
    """A reason from outside as one line of at most so many letters, with nothing in it that a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in words)[:FAILURE_LETTERS].strip()


def _with_form(answer: Predictions, *, num_classes: int, task: TaskName) -> Predictions:
    if answer.failure:
        return Predictions.failed(answer.hospital_id, [answer.role], in_one_line(str(answer.failure)) or "unknown")[0]
    form = (answer.probabilities, answer.labels, answer.groups, answer.loss)
    complaint = bad_form(*form, num_classes=num_classes, task=task) or _bad_subgroups(answer)
    return _refused(answer.hospital_id, [answer.role], complaint)[0] if complaint else answer


def _refused(hospital_id: str, roles: Sequence[str], complaint: str) -> list[Predictions]:
    return Predictions.failed(hospital_id, roles, f"{REFUSED}: {complaint}")


def _bad_subgroups(answer: Predictions) -> str:
    scans = len(answer.labels)
    if not isinstance(answer.subgroups, Mapping) or len(answer.subgroups) > MOST_SUBGROUPS:
        return f"subgroups are words by the names of at most {MOST_SUBGROUPS} columns"
    for name, words in answer.subgroups.items():
        if not isinstance(name, str) or not isinstance(words, np.ndarray) or words.dtype.kind != "U":
            return "subgroups are words by the names of columns"
        if words.shape != (scans,):
            return f"subgroups are words for each of {scans} scans, got {words.shape} of {in_one_line(name)}"
    return ""


def _roles(answers: Sequence[Predictions]) -> list[str]:
    return list(dict.fromkeys(one.role for one in answers))


def _lower_median(counts: Sequence[int]) -> int:
    """Of an even number of counts the lower one in the middle: one of two hospitals does not set its own limit."""
    return sorted(counts)[(len(counts) - 1) // 2]
