"""Learning to tell a scan from one that was tampered with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

from fedplatform.models import Classifier, ModelBuilder
from fedplatform.models.torchvision_ops import CarriesNetworks
from fedplatform.training.objectives import ascend

UNTOUCHED, TAMPERED = 0, 1


@dataclass(frozen=True)
class Tampering(CarriesNetworks):
    """Cross-entropy between scans and their attacked twins (after Metzen et al., ICLR 2017).

    The twins are attacked within an epsilon drawn for each batch from ``least_epsilon`` to ``most_epsilon`` (pixel
    units) through the ``victim``, a classifier of the federation, in one step or ``steps``. Every other batch the
    attacker knows the sensor, too, and pushes its answer towards "untouched" while it fools the victim: a sensor that
    has only met careless attackers is as easily fooled as the classifier that it guards.
    """

    victim: nn.Module = field(repr=False)
    least_epsilon: float = 1 / 255
    most_epsilon: float = 8 / 255
    steps: int = 3

    def network(self, model: ModelBuilder, *, channels: int, num_classes: int, size: int) -> nn.Module:
        """A classifier of two classes, whatever the number of diagnoses."""
        del num_classes
        return Classifier(model(channels=channels, num_classes=2, size=size))

    def loss(
        self,
        network: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        generator: torch.Generator,
        progress: float,
    ) -> torch.Tensor:
        """Mean over scans and twins."""
        del progress
        draw, knows = torch.rand(2, generator=generator).tolist()
        epsilon = self.least_epsilon + (self.most_epsilon - self.least_epsilon) * draw
        tampered = torch.full_like(labels, TAMPERED)

        def harm(moved: torch.Tensor) -> torch.Tensor:
            fooled = functional.cross_entropy(self.victim(moved), labels)
            return fooled + functional.cross_entropy(network(moved), tampered) if knows < 0.5 else fooled

        steps = 1 if draw < 0.25 else self.steps
        twins = ascend(harm, images, epsilon=epsilon, steps=steps, generator=generator)
        return self._told_apart(network, images, twins)

    def plain_loss(
        self, network: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator
    ) -> torch.Tensor:
        """How well scans are told from random noise of the largest epsilon, for which no gradient is needed."""
        del labels
        signs = torch.rand(images.shape, generator=generator).to(images).sub(0.5).sign()
        return self._told_apart(network, images, (images + self.most_epsilon * signs).clamp(0, 1))

    def probabilities(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """No diagnosis: (n, 0)."""
        del network
        return images.new_zeros(len(images), 0)

    @staticmethod
    def _told_apart(network: nn.Module, images: torch.Tensor, twins: torch.Tensor) -> torch.Tensor:
        answers = network(torch.cat([images, twins]))
        truth = torch.tensor([UNTOUCHED, TAMPERED], device=images.device).repeat_interleave(len(images))
        return functional.cross_entropy(answers, truth)
