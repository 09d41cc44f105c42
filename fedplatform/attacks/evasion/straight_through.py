"""Gradients where a defence has none: its answer forward, a stand-in backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Transform = Callable[[torch.Tensor], torch.Tensor]


class _Swap(torch.autograd.Function):
    """The second argument forward, the gradient to the first backward."""

    @staticmethod
    def forward(_context: Any, _stand_in: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(_context: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None]:
        return slopes[0], None


def identity(images: torch.Tensor) -> torch.Tensor:
    """The stand-in for a transform that hardly changes a scan."""
    return images


def straight_through(transform: Transform, stand_in: Transform = identity) -> Transform:
    """A transform (n, c, h, w) to the same shape that answers bit for bit as itself and differentiates as ``stand_in``.

    This is the backward pass differentiable approximation (BPDA; Athalye et al., ICML 2018), for quantisers, JPEG and
    purifiers whose exact gradient is out of reach.
    """

    def answer(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            value = transform(images)
        swapped: torch.Tensor = _Swap.apply(stand_in(images), value)  # type: ignore[no-untyped-call]
        return swapped

    return answer
