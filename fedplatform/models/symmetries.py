"""The eight ways in which a square picture can lie, and a classifier that looks at all of them."""

from __future__ import annotations

import math

import torch
from torch import nn

SYMMETRIES = 8


def seen_from(images: torch.Tensor, symmetry: int) -> torch.Tensor:
    """Images (n, c, h, h) turned by ``symmetry`` % 4 quarters, and flipped first where it is 4 or more."""
    flipped = images.flip(3) if symmetry >= 4 else images
    return torch.rot90(flipped, symmetry % 4, (2, 3))


class AllSides(nn.Module):
    """The mean probability that a classifier gives to a scan seen from its eight sides, as log-probabilities.

    A diagnosis does not depend on how the picture lies, a perturbation made for one view does. Differentiable, and
    fully known to whoever attacks it.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (n, num_classes) of images (n, c, h, h) in [0, 1]."""
        views = torch.cat([seen_from(images, symmetry) for symmetry in range(SYMMETRIES)])
        answers: torch.Tensor = self.classifier(views).log_softmax(dim=1).unflatten(0, (SYMMETRIES, len(images)))
        return answers.logsumexp(dim=0) - math.log(SYMMETRIES)
