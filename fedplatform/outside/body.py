"""What a message holds, as safetensors: an update or predictions, read so that nothing else gets through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedplatform.core.messages import Predictions, Update
from fedplatform.core.tasks import TASKS, TaskName
from fedplatform.data.splits import Role
from fedplatform.federated.arrivals import malformation
from fedplatform.federated.transport import EXACT, Transport, TransportError
from fedplatform.outside.refusal import Reason, Refusal

FRAME_BYTES = 4096  # of a safetensors file beside its numbers
PREDICTIONS_BYTES = 16 * 2**20  # a million scans of two classes
EXAMPLES, LOSS, SECONDS = "num_examples", "train_loss", "seconds"
PROBABILITIES, LABELS, GROUPS, MEAN_LOSS, FAILURE = "probabilities", "labels", "groups", "loss", "failure"
FAILURE_LETTERS = 300  # of the reason that a hospital gives for having no predictions


def update_bytes(size: int, transport: Transport = EXACT) -> int:
    """The most bytes that an update of ``size`` weights may have."""
    return transport.most_bytes(size) + FRAME_BYTES


def encode_update(update: Update, transport: Transport = EXACT) -> bytes:
    """An update as safetensors: what travels for ``delta``, and ``num_examples``, ``train_loss`` and ``seconds``."""
    return _body(
        {
            **transport.pack(update.delta),
            EXAMPLES: np.array([update.num_examples], np.int64),
            LOSS: np.array([update.train_loss], np.float64),
            SECONDS: np.array([update.seconds], np.float64),
        }
    )


def decode_update(
    body: bytes, *, hospital_id: str, round_number: int, size: int, transport: Transport = EXACT
) -> Update:
    """Read an update of ``size`` weights. Raises :class:`Refusal` for whatever is none."""
    found = _tensors(body, {**transport.kinds, EXAMPLES: np.int64, LOSS: np.float64, SECONDS: np.float64})
    for name in (EXAMPLES, LOSS, SECONDS):
        if found[name].shape != (1,):
            raise Refusal(Reason.MALFORMED, f"{name} has shape (1,), got {found[name].shape}")
    try:
        delta = transport.unpack(found, size=size)
    except TransportError as error:
        raise Refusal(Reason.MALFORMED, str(error)) from error
    update = Update(
        hospital_id=hospital_id,
        round_number=round_number,
        delta=delta,
        num_examples=int(found[EXAMPLES][0]),
        train_loss=float(found[LOSS][0]),
        seconds=float(found[SECONDS][0]),
    )
    if complaint := malformation(update, size=size, round_number=round_number):
        raise Refusal(Reason.MALFORMED, complaint)
    return update


def seconds_in(body: bytes) -> float:
    """How long the training of an update took, as its message says."""
    return float(load(body)[SECONDS][0])


def encode_predictions(predictions: Sequence[Predictions]) -> bytes:
    """Predictions in each role as safetensors: ``test.probabilities``, ``test.labels``, ``test.loss`` and so on.

    ``test.failure`` is the reason, in UTF-8, why there are none; empty where there are.
    """
    tensors: dict[str, np.ndarray] = {}
    for one in predictions:
        tensors[f"{one.role}.{PROBABILITIES}"] = np.ascontiguousarray(one.probabilities, np.float32)
        tensors[f"{one.role}.{LABELS}"] = np.ascontiguousarray(one.labels, np.int64)
        tensors[f"{one.role}.{GROUPS}"] = np.ascontiguousarray(one.groups, np.int64)
        tensors[f"{one.role}.{MEAN_LOSS}"] = np.array([one.loss], np.float64)
        tensors[f"{one.role}.{FAILURE}"] = np.frombuffer(one.failure[:FAILURE_LETTERS].encode(), np.uint8)
    return _body(tensors)


def decode_predictions(
    body: bytes, *, hospital_id: str, roles: Sequence[Role], num_classes: int, task: TaskName = "multiclass"
) -> tuple[Predictions, ...]:
    """Read predictions in these roles. Raises :class:`Refusal` for whatever is none."""
    row, values = TASKS[task].row(num_classes), TASKS[task].values(num_classes)
    kinds: dict[str, Any] = {
        **{PROBABILITIES: np.float32, LABELS: np.int64, GROUPS: np.int64},
        **{MEAN_LOSS: np.float64, FAILURE: np.uint8},
    }
    found = _tensors(body, {f"{role}.{name}": kind for role in roles for name, kind in kinds.items()})
    read = []
    for role in roles:
        probabilities, labels, groups, loss, failure = (found[f"{role}.{name}"] for name in kinds)
        fits = labels.shape == (0,) or (labels.ndim > 0 and labels.shape[1:] == row)  # (0,) without an answer
        scans = len(labels) if fits else -1
        if probabilities.shape not in ((scans, num_classes), (scans, 0)) or loss.shape != (1,):
            form = f"(m, {', '.join(map(str, row))})" if row else "(m,)"
            raise Refusal(
                Reason.MALFORMED,
                f"predictions have shapes (m, {num_classes}), {form} and (1,), "
                f"got {probabilities.shape}, {labels.shape} and {loss.shape}",
            )
        if not ((probabilities >= 0) & (probabilities <= 1)).all():  # NaN is neither
            raise Refusal(Reason.MALFORMED, "a probability is between 0 and 1")
        if not ((labels >= values.start) & (labels < values.stop)).all():
            says = f"one of {num_classes} classes" if not row else f"0 or 1 of each of {num_classes} findings"
            raise Refusal(Reason.MALFORMED, f"a label is {says}")
        if groups.shape != (scans,) or not ((groups >= 0) & (groups < scans)).all():
            raise Refusal(Reason.MALFORMED, "groups number the patients of the scans, from 0 and below their number")
        if failure.ndim != 1 or (len(failure) and scans):
            raise Refusal(Reason.MALFORMED, "a hospital answers with predictions or with the reason for having none")
        read.append(Predictions(hospital_id, role, probabilities, labels, float(loss[0]), _words(failure), groups))
    return tuple(read)


def _words(failure: np.ndarray) -> str:
    """A reason from outside as one line of at most so many letters, with nothing in it that a terminal would obey."""
    text = failure.tobytes().decode(errors="replace")
    return "".join(letter if letter.isprintable() else " " for letter in text)[:FAILURE_LETTERS].strip()


def encode_weights(weights: np.ndarray) -> bytes:
    """The weights (d,) as they go to hospitals."""
    return _body({"weights": np.ascontiguousarray(weights, np.float32)})


def decode_weights(body: bytes) -> np.ndarray:
    """The weights (d,) that the server sent. Raises :class:`Refusal` where they are none."""
    return _tensors(body, {"weights": np.float32})["weights"]


def _body(tensors: Mapping[str, np.ndarray]) -> bytes:
    body: bytes = save(dict(tensors))
    return body


def _tensors(body: bytes, kinds: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Exactly these arrays of exactly these types."""
    try:
        found: dict[str, np.ndarray] = load(body)
    except (SafetensorError, KeyError, ValueError, TypeError, OverflowError, AttributeError) as error:
        raise Refusal(Reason.MALFORMED, f"this is no safetensors file: {' '.join(str(error).split())[:100]}") from error
    got = {name: array.dtype for name, array in found.items()}
    if got != {name: np.dtype(kind) for name, kind in kinds.items()}:
        said = ", ".join(f"{name[:40]} {kind}" for name, kind in sorted(got.items())[:8])
        raise Refusal(Reason.MALFORMED, f"a message holds {', '.join(sorted(kinds))}; got {said or 'nothing'}")
    return found
