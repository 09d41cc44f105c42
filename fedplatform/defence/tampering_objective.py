"""Learning to tell a scan from one that was tampered with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.nn import functional

from fedplatform.learning.models import Classifier, ModelBuilder
from fedplatform.learning.models.torchvision_ops import CarriesNetworks
from fedplatform.learning.training.objectives import Batch, perturbed

UNTOUCHED, TAMPERED = 0, 1


@dataclass(frozen=True)
class Tampering(CarriesNetworks):
    """Cross-entropy between scans and their attacked twins (after Metzen et al., ICLR 2017).

    The twins are attacked within an epsilon drawn for each batch from ``least_epsilon`` to ``most_epsilon`` (pixel
    units) through the ``victim``, a classifier of the federation, in up to ``steps`` steps. In a third of the batches
    the attacker knows the sensor, too, and pushes its answer towards "untouched" while it fools the victim: a sensor
    that has only met careless attackers is as easily fooled as the classifier that it guards. In a tenth nobody knows
    anything, and blocks of pixels are moved at random, as those do who only see answers.

    Scans and twins are shifted by up to half a grey level at random, so that the sensor does not learn that an attacked
    scan has no whole grey levels: what reaches a hospital as a file has them again.
    """

    victim: nn.Module = field(repr=False)
    least_epsilon: float = 1 / 255
    most_epsilon: float = 8 / 255
    steps: int = 10

    def network(self, model: ModelBuilder, *, channels: int, num_classes: int, size: int) -> nn.Module:  # noqa: ARG002
        """A classifier of two classes, whatever the number of diagnoses."""
        return Classifier(model(channels=channels, num_classes=2, size=size))

    def to(self, device: torch.device) -> Tampering:
        """The same with the victim on a device, moved and not copied."""
        return replace(self, victim=self.victim.to(device))

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean over scans and twins."""
        generator = batch.generator
        draw, knows, effort = torch.rand(3, generator=generator).tolist()
        epsilon = self.least_epsilon + (self.most_epsilon - self.least_epsilon) * draw
        images = _between_grey_levels(batch.images, generator)
        if knows >= 0.9:
            return self._told_apart(network, images, _blocks(images, epsilon, generator))
        tampered = torch.full_like(batch.labels, TAMPERED)

        def harm(moved: torch.Tensor) -> torch.Tensor:
            fooled = functional.cross_entropy(self.victim(moved), batch.labels)
            return fooled + functional.cross_entropy(network(moved), tampered) if knows < 1 / 3 else fooled

        steps = 1 + int(effort * self.steps)
        # Batch normalisation must not count what is tried on the way: those are attacked scans without their twins.
        network.eval()
        twins = perturbed(harm, images, epsilon=epsilon, steps=steps, generator=generator)
        network.train()
        return self._told_apart(network, images, _between_grey_levels(twins, generator))

    def plain_loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """How well scans are told from random noise of the largest epsilon, for which no gradient is needed."""
        return self._told_apart(network, batch.images, _blocks(batch.images, self.most_epsilon, batch.generator))

    def probabilities(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """No diagnosis: (n, 0)."""
        return images.new_zeros(len(images), 0)

    @staticmethod
    def _told_apart(network: nn.Module, images: torch.Tensor, twins: torch.Tensor) -> torch.Tensor:
        answers = network(torch.cat([images, twins]))
        each = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        truth = torch.cat([each + UNTOUCHED, each + TAMPERED])
        return functional.cross_entropy(answers, truth)


def _between_grey_levels(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    shift = torch.rand(images.shape, generator=generator).to(images) - 0.5
    return (images + shift / 255).clamp(0, 1)


def _blocks(images: torch.Tensor, epsilon: float, generator: torch.Generator) -> torch.Tensor:
    """Images (n, c, h, w) whose pixels moved by +-epsilon, blocks of 1 to 16 pixels a side alike."""
    side = 2 ** int(torch.randint(5, (1,), generator=generator))
    n, channels, height, width = images.shape
    shape = (n, channels, -(-height // side), -(-width // side))
    signs = torch.rand(shape, generator=generator).sub(0.5).sign().to(images)
    blocks = signs.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)[..., :height, :width]
    return (images + epsilon * blocks).clamp(0, 1)
