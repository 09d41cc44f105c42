"""What a network must be to be trained, found out before any scan is read."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fedplatform.core.seeding import lent_stream

SCANS = 2  # of the rehearsal, as in the smallest batch


def require_plain_weights(network: nn.Module) -> None:
    """Raises ValueError for weights that cannot travel: lazy ones, other types than float32, none to be trained."""
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if is_lazy(value):
            raise ValueError(f"{name} has no shape yet: give the layer its width in place of a lazy layer")
    for name, parameter in network.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(f"weights are float32, got {parameter.dtype} in {name}")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("a network needs weights to train, and all of its layers are frozen")


def require_answers(network: nn.Module, *, channels: int, num_classes: int, size: int) -> None:
    """Show a copy of a classifier two empty scans, in training and after it, and go back through it.

    Raises ValueError where it answers anything else than logits (n, num_classes), or where it raises.
    """
    scans = torch.zeros(SCANS, channels, size, size).contiguous(memory_format=torch.channels_last)
    rehearsing = copy.deepcopy(network)
    with lent_stream(0):
        try:
            rehearsing.train()
            trained = rehearsing(scans)
            _require_logits(trained, num_classes)
            trained.sum().backward()
            with torch.inference_mode():
                _require_logits(rehearsing.eval()(scans), num_classes)
        except ValueError:
            raise
        except Exception as error:  # whatever a user's network raises
            said = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"it fails on scans ({channels}, {size}, {size}): {type(error).__name__}: {said}"
            ) from error


def _require_logits(answer: object, num_classes: int) -> None:
    wanted = f"a network answers logits ({SCANS}, {num_classes}) to {SCANS} scans of {num_classes} classes"
    if not isinstance(answer, torch.Tensor):
        raise ValueError(f"{wanted}, got a {type(answer).__name__}")
    if answer.shape != (SCANS, num_classes) or not answer.is_floating_point():
        raise ValueError(f"{wanted}, got {answer.dtype} {tuple(answer.shape)}")
