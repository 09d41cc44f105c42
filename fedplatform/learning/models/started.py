"""A network that starts from given weights, the same in every process that builds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from fedplatform.learning.models.classifier import ModelBuilder
from fedplatform.learning.models.freezing import freeze


@dataclass(frozen=True, eq=False)
class StartedModel:
    """What ``builder`` builds, with ``state`` in place of its random weights and the parts ``frozen`` left untrained.

    It travels with its weights, so that a hospital needs no file and no network to start from them. Raises ValueError
    for state that the network does not have.
    """

    builder: ModelBuilder
    state: Mapping[str, np.ndarray] = field(repr=False)  # by state name of the network
    frozen: tuple[str, ...] = ()

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        """Build, load, freeze."""
        network = self.builder(channels=channels, num_classes=num_classes, size=size)
        own = network.state_dict()
        for name, value in self.state.items():
            if name not in own or tuple(own[name].shape) != value.shape:
                raise ValueError(f"the weights to start from hold {name} {value.shape}, which the network does not")
            own[name].copy_(torch.from_numpy(value))
        if self.frozen:
            freeze(network, self.frozen)
        return network
