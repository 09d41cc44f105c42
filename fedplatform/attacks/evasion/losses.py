"""What an attack makes large, one value a scan: the margin by which the answer is wrong, or the cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch.nn import functional

from fedplatform.attacks.evasion.attack import Target

Loss = Literal["cross_entropy", "margin"]


def _others(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits (n, k) with that of the true class out of the game."""
    return logits.scatter(1, labels[:, None], -torch.inf)


def _own(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.gather(1, labels[:, None]).squeeze(1)


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The best wrong logit minus the true one (Carlini and Wagner, S&P 2017): (n, k) to (n,), positive where fooled."""
    return _others(logits, labels).amax(dim=1) - _own(logits, labels)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (n,) whose gradient survives a confident network.

    The usual form takes p - 1 for the true class, which float32 rounds to zero from a margin of 17 on.
    """
    return functional.softplus(_others(logits, labels).logsumexp(dim=1) - _own(logits, labels))


LOSSES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = MappingProxyType(
    {"cross_entropy": cross_entropy, "margin": margin}
)


def loss_of(loss: Loss, target: Target, labels: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The loss of a target's answers (n,) as a function of the images (n, c, h, w) alone."""
    return lambda images: LOSSES[loss](target(images), labels)


def check_loss(name: str) -> None:
    """Raise ValueError where there is no such loss."""
    if name not in LOSSES:
        raise ValueError(f"no loss is called {name!r}; known: {', '.join(LOSSES)}")
