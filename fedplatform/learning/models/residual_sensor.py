"""A network that looks at the noise of a scan and not at the scan, as steganalysis does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

WIDEST = 6 / 255  # residuals beyond some grey levels are edges, of which there is nothing to learn


@dataclass(frozen=True)
class ResidualSensor:
    """Truncated high-pass residuals and convolutions that do not pool them away (after Xu et al., 2016).

    Five fixed filters (Fridrich & Kodovsky, IEEE TIFS 2012) take out what is smooth, a tanh what is an edge: a
    perturbation of a few grey levels, invisible beside anatomy, is most of what is left. The first two convolutions
    keep the full resolution, because an average would drown what they look for.
    """

    width: int = 16

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        """About 17,000 parameters at the default width, for images of at least 8 pixels."""
        if size < 8:
            raise ValueError(f"residual_sensor halves the image twice and needs size >= 8, got {size}")
        return _Sensor(channels, num_classes, self.width)


class _Sensor(nn.Module):
    filters: torch.Tensor

    def __init__(self, channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("filters", _high_pass().repeat(channels, 1, 1, 1), persistent=False)
        layers: list[nn.Module] = []
        taken = 6 * channels
        for wide, stride in ((width, 1), (width, 1), (2 * width, 2), (2 * width, 2)):
            layers += [nn.Conv2d(taken, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU()]
            taken = wide
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(taken, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n, num_classes) of images (n, c, h, w), normalised to mean .5 and deviation .25."""
        padded = functional.pad(images / 4, (1, 1, 1, 1), mode="reflect")
        residuals = functional.conv2d(padded, self.filters, groups=images.shape[1])
        seen = torch.cat([torch.tanh(residuals / WIDEST), images / 2], dim=1)
        logits: torch.Tensor = self.head(self.features(seen))
        return logits


def _high_pass() -> torch.Tensor:
    """Five filters (5, 1, 3, 3): second differences along each axis and both, first differences along each."""
    line = torch.tensor([-1.0, 2.0, -1.0])
    filters = torch.zeros(5, 1, 3, 3)
    filters[0, 0, 1], filters[1, 0, :, 1] = line / 2, line / 2
    filters[2, 0] = -torch.outer(line, line) / 4
    filters[3, 0, 1, 1], filters[3, 0, 1, 2] = -1, 1
    filters[4, 0, 1, 1], filters[4, 0, 2, 1] = -1, 1
    return filters
