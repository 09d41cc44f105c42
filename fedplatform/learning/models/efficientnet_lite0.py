"""EfficientNet-lite0 cut after a stage, for small scans: averaged, enlarged, and small enough for a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fedplatform.learning.models.torchvision_ops import import_timm

WIDTHS = (16, 24, 40, 80, 112, 192, 320)  # channels after each stage
DROPOUT = 0.1


@dataclass(frozen=True)
class EfficientNetLite0:
    """timm's ``tf_efficientnet_lite0`` (Tan and Le, ICML 2019) up to a stage, with a linear head of its own.

    ``stages`` from 1 to 7 (5: 0.7 M weights). A scan is averaged ``pool`` x ``pool`` and then enlarged to ``enlarge``
    pixels a side (0: not at all): layers trained on large photographs see little in a scan of 64 pixels. Averaging
    first removes noise that an attacker could use, and detail that the diagnosis could use. Without pre-trained
    weights it starts from random ones.

    >>> import torch
    >>> network = EfficientNetLite0(stages=2, enlarge=32)(channels=1, num_classes=2, size=16)
    >>> network.eval()(torch.zeros(3, 1, 16, 16)).shape
    torch.Size([3, 2])
    """

    stages: int = 5
    pool: int = 1
    enlarge: int = 128

    imagenet_name = "tf_efficientnet_lite0"

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        """Raises ValueError for stages that there are not, or a scan smaller than what is averaged."""
        if not 1 <= self.stages <= len(WIDTHS):
            raise ValueError(f"efficientnet_lite0 has stages 1 to {len(WIDTHS)}, got {self.stages}")
        if not 1 <= self.pool <= size or self.enlarge < 0:
            raise ValueError(
                f"efficientnet_lite0 needs 1 <= pool <= size and enlarge >= 0, got pool={self.pool}, "
                f"enlarge={self.enlarge}, size={size}"
            )
        network = import_timm().create_model(self.imagenet_name, pretrained=False, in_chans=channels)
        return CutEfficientNet(
            network,
            stages=self.stages,
            pool=self.pool,
            enlarge=self.enlarge,
            num_classes=num_classes,
        )


class CutEfficientNet(nn.Module):
    """Logits (n, num_classes) of normalised scans (n, c, h, w); its layers have the names that they have in timm."""

    input_mean = (0.5,)  # as the weights of this network were trained
    input_std = (0.5,)

    def __init__(self, network: Any, *, stages: int, pool: int, enlarge: int, num_classes: int) -> None:
        super().__init__()
        self.resize = Resize(pool, enlarge)
        self.conv_stem: nn.Module = network.conv_stem
        self.bn1: nn.Module = network.bn1
        self.blocks: nn.Module = network.blocks[:stages]
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(DROPOUT), nn.Linear(WIDTHS[stages - 1], num_classes)
        )

    def links(self) -> list[nn.Module]:
        """Each takes what the one before gives, down to the single blocks of a stage."""
        blocks = [block for stage in self.blocks for block in stage]  # type: ignore[attr-defined]
        return [self.resize, self.conv_stem, self.bn1, *blocks, self.head]

    def forward(self, scans: torch.Tensor) -> torch.Tensor:
        """Average, enlarge, classify."""
        logits: torch.Tensor = self.head(self.blocks(self.bn1(self.conv_stem(self.resize(scans)))))
        return logits


class Resize(nn.Module):
    """Scans (n, c, h, w) averaged ``pool`` x ``pool``, then enlarged to ``enlarge`` pixels a side, unless that is 0."""

    def __init__(self, pool: int, enlarge: int) -> None:
        super().__init__()
        self.pool, self.enlarge = pool, enlarge

    def forward(self, scans: torch.Tensor) -> torch.Tensor:
        """Bilinear."""
        if self.pool > 1:
            scans = functional.avg_pool2d(scans, self.pool)
        if self.enlarge:
            side = (self.enlarge, self.enlarge)
            scans = functional.interpolate(scans, size=side, mode="bilinear", align_corners=False)
        return scans

    def extra_repr(self) -> str:
        """Both settings."""
        return f"pool={self.pool}, enlarge={self.enlarge}"
