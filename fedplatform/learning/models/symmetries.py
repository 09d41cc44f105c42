"""The eight ways in which a square picture can lie, and a classifier that looks at all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

SYMMETRIES = tuple(range(8))


def seen_from(images: torch.Tensor, symmetry: int) -> torch.Tensor:
    """Images (n, c, h, h) turned by ``symmetry`` % 4 quarters, and flipped first where it is 4 or more."""
    flipped = images.flip(3) if symmetry >= 4 else images
    return torch.rot90(flipped, symmetry % 4, (2, 3))


class SeenFrom(nn.Module):
    """The mean probability that a classifier gives to a scan seen from several sides, as log-probabilities.

    A diagnosis does not depend on how the picture lies, a perturbation made for one view does. Differentiable, and
    fully known to whoever attacks it.
    """

    def __init__(self, classifier: nn.Module, symmetries: Sequence[int]) -> None:
        super().__init__()
        self.classifier = classifier
        self.symmetries = tuple(symmetries)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (n, num_classes) of images (n, c, h, h) in [0, 1]."""
        views = torch.cat([seen_from(images, symmetry) for symmetry in self.symmetries])
        answers: torch.Tensor = self.classifier(views).log_softmax(dim=1)
        each = answers.unflatten(0, (len(self.symmetries), len(images)))
        mean: torch.Tensor = each.logsumexp(dim=0) - math.log(len(self.symmetries))
        return mean
