"""What an attack on a scan is: it knows a callable, some scans and their labels, and how far it may move a pixel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch

Target = Callable[[torch.Tensor], torch.Tensor]
"""Images (n, c, h, w) in [0, 1] to logits (n, k), differentiable; one that draws noise draws it anew in each call."""

Decide = Callable[[torch.Tensor], torch.Tensor]
"""Images (n, c, h, w) in [0, 1] to answers (n,) int64; -1 where the scan is referred to a radiologist."""

Score = Callable[[torch.Tensor], torch.Tensor]
"""Images (n, c, h, w) in [0, 1] to anomaly scores (n,), differentiable; higher is more suspicious."""


class EvasionAttack(ABC):
    """Moves each scan by at most ``epsilon`` inside [0, 1]; a subclass is a frozen dataclass with a :meth:`perturb`.

    ``epsilon`` is in pixels of [0, 1] for the norm ``linf``, a length for ``l2``.
    """

    epsilon: float

    @final
    def __call__(
        self,
        target: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Attacked images (n, c, h, w) of images (n, c, h, w) in [0, 1] with labels (n,) int64; neither is changed.

        ``target`` is a :data:`Target`, for :class:`HopSkipJump` a :data:`Decide`. Without a ``generator`` the attack
        draws from one seeded 0. Raises ValueError for images outside [0, 1] or labels that do not fit them.
        """
        if images.ndim != 4 or labels.shape != images.shape[:1]:
            raise ValueError(
                "an attack takes images (n, c, h, w) and labels (n,), "
                f"got {tuple(images.shape)} and {tuple(labels.shape)}"
            )
        if len(images) and not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(f"images are in [0, 1], got {float(images.min()):.3g} to {float(images.max()):.3g}")
        return self.perturb(target, images, labels, generator=generator or torch.Generator().manual_seed(0))

    @abstractmethod
    def perturb(
        self,
        target: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """The attacked images; arguments are checked already."""


def check_settings(attack: EvasionAttack, *counts: str, norm: str = "linf") -> None:
    """Raise ValueError where ``epsilon`` is no pixel distance or a setting named in ``counts`` is below 1."""
    largest = 1.0 if norm == "linf" else float("inf")
    if not 0 <= attack.epsilon <= largest:
        raise ValueError(f"epsilon is in pixels of [0, 1], as 8/255, got {attack.epsilon}")
    for name in counts:
        if getattr(attack, name) < 1:
            raise ValueError(f"{type(attack).__name__} needs {name} >= 1, got {getattr(attack, name)}")
