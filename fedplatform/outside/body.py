"""What a message holds, as safetensors: an update or predictions, read so that nothing else gets through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedplatform.core.messages import Predictions, Update
from fedplatform.core.tasks import TaskName
from fedplatform.data.splits import Role
from fedplatform.federated.answers import FAILURE_LETTERS, bad_form, in_one_line
from fedplatform.federated.arrivals import malformation
from fedplatform.federated.transport import EXACT, Transport, TransportError
from fedplatform.outside.refusal import Reason, Refusal

FRAME_BYTES = 4096  # of a safetensors file beside its numbers
PREDICTIONS_BYTES = 16 * 2**20  # a million scans of two classes
EXAMPLES, LOSS, SECONDS = "num_examples", "train_loss", "seconds"
PROBABILITIES, LABELS, GROUPS, MEAN_LOSS, FAILURE = "probabilities", "labels", "groups", "loss", "failure"


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
        travelled=len(body),
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
    kinds: dict[str, Any] = {
        **{PROBABILITIES: np.float32, LABELS: np.int64, GROUPS: np.int64},
        **{MEAN_LOSS: np.float64, FAILURE: np.uint8},
    }
    found = _tensors(body, {f"{role}.{name}": kind for role in roles for name, kind in kinds.items()})
    read = []
    for role in roles:
        probabilities, labels, groups, loss, failure = (found[f"{role}.{name}"] for name in kinds)
        if loss.shape != (1,):
            raise Refusal(Reason.MALFORMED, f"a loss has shape (1,), got {loss.shape}")
        if complaint := bad_form(probabilities, labels, groups, float(loss[0]), num_classes=num_classes, task=task):
            raise Refusal(Reason.MALFORMED, complaint)
        if failure.ndim != 1 or (len(failure) and len(labels)):
            raise Refusal(Reason.MALFORMED, "a hospital answers with predictions or with the reason for having none")
        read.append(
            Predictions(
                hospital_id,
                role,
                probabilities,
                labels,
                float(loss[0]),
                in_one_line(failure.tobytes().decode(errors="replace")),
                groups,
            )
        )
    return tuple(read)


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
