"""A small residual network that looks at a scan at half its resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class SmallResNet:
    """Residual network (He et al., CVPR 2016) of four stages behind an average pool; made for CPUs and attackers.

    The scan is averaged over ``pool`` x ``pool`` pixels first. That is cheaper by pool squared, and a perturbation
    bounded pixel by pixel keeps only one direction of pool squared: the rest averages out. SiLU, because its
    smoothness helps adversarial training (Xie et al., 2020). ``blocks`` a stage; ``width`` channels in the first.
    """

    width: int = 16
    pool: int = 2
    blocks: int = 1

    def __call__(self, *, channels: int, num_classes: int, size: int) -> ResNetBody:
        """About 155,000 parameters at the default width, for images of at least 8 ``pool`` pixels."""
        if size < 8 * self.pool:
            raise ValueError(f"small_resnet halves the pooled image three times and needs size >= {8 * self.pool}")
        features = residual_features(channels, width=self.width, pool=self.pool, blocks=self.blocks)
        return ResNetBody(features, nn.Linear(4 * self.width, num_classes))


class ResNetBody(nn.Module):
    """Features (n, m) of a scan and a linear head on them."""

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n, num_classes) of normalised images (n, c, h, w)."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits


def residual_features(channels: int, *, width: int, pool: int, blocks: int) -> nn.Sequential:
    """The convolutions: images (n, channels, h, w) to features (n, 4 ``width``), averaged over the picture."""
    layers: list[nn.Module] = [
        nn.AvgPool2d(pool),
        nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.SiLU(),
    ]
    taken = width
    for stage, wide in enumerate((width, 2 * width, 4 * width, 4 * width)):
        for block in range(blocks):
            layers.append(_Block(taken, wide, stride=2 if stage and not block else 1))
            taken = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _Block(nn.Module):
    """Two convolutions beside a shortcut, which averages where the block halves the picture (He et al., 2019)."""

    def __init__(self, taken: int, wide: int, *, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(taken, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU())
        self.second = nn.Sequential(nn.Conv2d(wide, wide, 3, 1, 1, bias=False), nn.BatchNorm2d(wide))
        same = taken == wide and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True), nn.Conv2d(taken, wide, 1, bias=False), nn.BatchNorm2d(wide)
            )
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return functional.silu(self.second(self.first(images)) + self.shortcut(images))
