"""What an attack on a scan is: it knows a callable, some scans and their labels, and how far it may move a pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch

Target = Callable[[torch.Tensor], torch.Tensor]
"""Images (n, c, h, w) in [0, 1] to logits (n, k), differentiable; one that draws noise draws it anew in each call."""

Decide = Callable[[torch.Tensor], torch.Tensor]
"""Images (n, c, h, w) in [0, 1] to answers (n,) int64; -1 where the scan is referred to a radiologist."""

Score = Callable[[torch.Tensor], torch.Tensor]
"""Images (n, c, h, w) in [0, 1] to anomaly scores (n,), differentiable; higher is more suspicious."""


@runtime_checkable
class EvasionAttack(Protocol):
    """Moves each scan by at most ``epsilon`` (pixel units) inside [0, 1]; an implementation is a frozen dataclass.

    Every attack takes a :data:`Target`, but :class:`HopSkipJump`, which takes a :data:`Decide`.
    """

    @property
    def epsilon(self) -> float: ...

    def __call__(
        self, target: Target, images: torch.Tensor, labels: torch.Tensor, /, *, generator: torch.Generator
    ) -> torch.Tensor:
        """Attacked images (n, c, h, w) of images (n, c, h, w) with labels (n,) int64; neither is changed."""
        ...


def check_settings(attack: EvasionAttack, *counts: str, norm: str = "linf") -> None:
    """Raise ValueError where ``epsilon`` is no pixel distance or a setting named in ``counts`` is below 1."""
    largest = 1.0 if norm == "linf" else float("inf")
    if not 0 <= attack.epsilon <= largest:
        raise ValueError(f"epsilon is in pixels of [0, 1], as 8/255, got {attack.epsilon}")
    for name in counts:
        if getattr(attack, name) < 1:
            raise ValueError(f"{type(attack).__name__} needs {name} >= 1, got {getattr(attack, name)}")
