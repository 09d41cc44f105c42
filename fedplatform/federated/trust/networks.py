"""Small networks as values: initialised by a generator, trained on a copy, kept as tensors that a checkpoint can hold.

Building one touches nobody else's random stream, and what was handed out never changes under its holder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from fedplatform.core.seeding import lent_stream

Weights = dict[str, torch.Tensor]
Network = TypeVar("Network", bound=nn.Module)


def initialised(build: Callable[[], nn.Module], generator: torch.Generator) -> Weights:
    """The first weights of a network, drawn from ``generator``."""
    with lent_stream(int(torch.randint(2**62, (1,), generator=generator))):
        return dict(build().state_dict())


def with_weights(build: Callable[[], Network], weights: Weights) -> Network:
    """The network with a copy of these weights; draws nothing."""
    with torch.device("meta"):
        network = build()
    network.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
    return network


def adam(network: nn.Module, *, learning_rate: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """AdamW in one fused kernel: in networks this small the calls would cost more than the arithmetic."""
    return torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
