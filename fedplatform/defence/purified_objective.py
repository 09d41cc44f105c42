"""Training a classifier on what the purifier makes of a scan."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.nn import functional

from fedplatform.defence import DiffusionPurifier, Purifier
from fedplatform.learning.models.torchvision_ops import CarriesNetworks
from fedplatform.learning.training.objectives import Batch, Classification, penalised_cross_entropy, perturbed


@dataclass(frozen=True)
class Purified(CarriesNetworks, Classification):
    """Cross-entropy on purified scans, attacked through the purifier (after AToP, Lin et al., ICLR 2024).

    Every scan goes through the ``purifier`` at a depth drawn for it from ``least_depth`` to ``most_depth``, so that the
    classifier knows what purified scans look like. With an ``epsilon`` (pixel units) it is attacked before, in one step
    of FGSM-RS whose gradient passes through the purifier under the same noise: what no training without the purifier
    prepares for.
    """

    purifier: Purifier = field(repr=False)
    least_depth: int
    most_depth: int
    epsilon: float = 0.0

    def to(self, device: torch.device) -> Purified:
        """The same with the purifier's network on a device, moved and not copied."""
        purifier = self.purifier
        if isinstance(purifier, DiffusionPurifier):
            purifier = replace(purifier, network=purifier.network.to(device))
        return replace(self, purifier=purifier)

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean over the batch. Depths stay on the host, which so knows without asking which scans go where."""
        images, generator = batch.images, batch.generator
        depth = torch.randint(self.least_depth, self.most_depth + 1, (len(images),), generator=generator)
        noise = torch.randn(images.shape, generator=generator).to(images)

        def clean(moved: torch.Tensor) -> torch.Tensor:
            return self.purifier(moved, depth, noise)

        attacked = images
        if self.epsilon:
            attacked = perturbed(
                lambda moved: functional.cross_entropy(network(clean(moved)), batch.labels),
                images,
                epsilon=self.epsilon,
                steps=1,
                generator=generator,
            )
        with torch.no_grad():
            purified = clean(attacked)
        return penalised_cross_entropy(network, purified, batch.labels)
