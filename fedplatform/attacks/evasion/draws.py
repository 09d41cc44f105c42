"""Random tensors in the form of a batch, drawn where the generator lives, so that a GPU gets the same as a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def uniform(shape: Sequence[int], like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Uniform in [-1, 1)."""
    drawn = torch.rand(list(shape), generator=generator, device=generator.device, dtype=like.dtype)
    return (2 * drawn - 1).to(like.device)


def normal(shape: Sequence[int], like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standard normal."""
    return torch.randn(list(shape), generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


def signs(shape: Sequence[int], like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Either -1 or 1, never 0."""
    return torch.where(uniform(shape, like, generator) < 0, -1.0, 1.0).to(like.dtype)
