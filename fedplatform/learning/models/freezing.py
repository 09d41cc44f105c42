"""A part of a network that training leaves as it is: its weights, and the statistics of its batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fedplatform.core.specification import nearest
from fedplatform.learning.models.fitting import head_names

BODY = "body"  # everything but the last layer: a linear probe


def freeze(network: nn.Module, parts: Sequence[str]) -> None:
    """Freeze parts of a classifier's body: ``body``, all but its last layer, or layers by name, with all below.

    Raises ValueError for a name that the network does not have, and where nothing would be left to train.

    >>> network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> freeze(network, ["body"])
    >>> [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    ['1.weight', '1.bias']
    """
    state, head = set(network.state_dict()), head_names(network)
    frozen: set[str] = set()
    for part in parts:
        found = state - head if part == BODY else {name for name in state if f"{name}.".startswith(f"{part}.")}
        if not found:
            known = [BODY, *(name for name, _ in network.named_modules() if name)]
            raise ValueError(f"no layer {part!r} to freeze{nearest(part, known)}")
        frozen |= found
    for name, parameter in network.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"freeze {', '.join(parts)} leaves nothing to train")
    for prefix, module in network.named_modules():
        buffers = tuple(name for name, _ in module.named_buffers(recurse=False))
        if buffers and all(f"{prefix}.{name}" in frozen for name in buffers):
            module.constant_names = buffers


def has_frozen_statistics(module: nn.Module) -> bool:
    """Whether this is a batch normalisation that goes on with the statistics it has."""
    return isinstance(module, nn.modules.batchnorm._NormBase) and bool(getattr(module, "constant_names", ()))


def training_mode(network: nn.Module) -> None:
    """Put a network into training mode, all but frozen batch normalisation."""
    network.train()
    for module in network.modules():
        if has_frozen_statistics(module):
            module.eval()
