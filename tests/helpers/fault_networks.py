"""Networks, an augmentation and a rule as users bring them: each is sound, and each has met a fault of the product."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

FEATURES = 128  # of `features`


def features(channels: int) -> nn.Sequential:
    """One convolution, averaged to 4 x 4."""
    return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())


@dataclass(frozen=True)
class Plain:
    """Nothing is normalised and nothing is drawn."""

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        return nn.Sequential(features(channels), nn.Linear(FEATURES, num_classes))


@dataclass(frozen=True)
class Frozen:
    """A body that was trained elsewhere and must not move; only the head is to be trained."""

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        body = features(channels)
        body.requires_grad_(False)
        return nn.Sequential(body, nn.Linear(FEATURES, num_classes))


class Tutorial(nn.Module):
    """The network of many a tutorial: it ends in ``x.view``, which takes the row-major layout only."""

    def __init__(self, channels: int, num_classes: int, size: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, 6, 5)
        self.width = 6 * ((size - 4) // 2) ** 2
        self.head = nn.Linear(self.width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.convolution(x)), 2)
        return self.head(x.view(-1, self.width))


@dataclass(frozen=True)
class View:
    """The tutorial's."""

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        return Tutorial(channels, num_classes, size)


class WithFeatures(nn.Module):
    """Answers (logits, features), as many medical networks do."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.body = features(channels)
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.body(x)
        return self.head(found), found


@dataclass(frozen=True)
class TwoAnswers:
    """A tuple in the place of logits."""

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        return WithFeatures(channels, num_classes)


@dataclass(frozen=True)
class Lazy:
    """Layers that learn their widths from the first batch."""

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        pooled = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        return nn.Sequential(nn.LazyConv2d(8, 3), pooled, nn.LazyLinear(num_classes))


@dataclass(frozen=True)
class Double:
    """Weights in double precision, which take no float32 scan."""

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        return Plain()(channels=channels, num_classes=num_classes, size=size).double()


class Converting(nn.Module):
    """A body in another precision behind a door that converts, and float32 answers."""

    def __init__(self, body: nn.Module, precision: torch.dtype) -> None:
        super().__init__()
        self.body, self.precision = body.to(precision), precision

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.to(self.precision)).float()


@dataclass(frozen=True)
class Half:
    """Weights in bfloat16, which NumPy does not know."""

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        return Converting(Plain()(channels=channels, num_classes=num_classes, size=size), torch.bfloat16)


class TwoNames(nn.Module):
    """Two layers that share one weight."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.body = features(channels)
        self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = functional.relu(self.first(self.body(x)))
        return self.head(functional.relu(self.second(inner)))


@dataclass(frozen=True)
class Tied:
    """Tied weights."""

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        return TwoNames(channels, num_classes)


class Scale(nn.Module):
    """A buffer that training changes and that is no batch normalisation: a running scale of the features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.scale.lerp_(x.detach().abs().mean(dim=0) + 1e-3, 0.1)
        return x / self.scale


@dataclass(frozen=True)
class RunningScale:
    """A network with such a scale."""

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        return nn.Sequential(features(channels), Scale(FEATURES), nn.Linear(FEATURES, num_classes))


@dataclass(frozen=True)
class Spectral:
    """Spectral normalisation (Miyato et al., ICLR 2018), whose power iteration lives in buffers."""

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        head = nn.utils.parametrizations.spectral_norm(nn.Linear(FEATURES, num_classes))
        return nn.Sequential(features(channels), head)


@dataclass(frozen=True)
class Drops:
    """Half of the features are dropped at random, anew in every step."""

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        return nn.Sequential(features(channels), nn.Dropout(0.5), nn.Linear(FEATURES, num_classes))


@dataclass(frozen=True)
class EndsInBatchNorm:
    """The example of docs/extending.md: batch normalisation of one value a scan."""

    hidden: int = 8

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * size * size, self.hidden),
            nn.BatchNorm1d(self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, num_classes),
        )


@dataclass(frozen=True)
class NanOnce:
    """The very first batch holds a NaN, as after a division by an empty mask; every later one is as it should be."""

    calls: ClassVar[list[int]] = []

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        self.calls.append(len(images))
        if len(self.calls) > 1:
            return images
        spoilt = images.clone()
        spoilt[0, 0, 0, 0] = float("nan")
        return spoilt


def write_rule(file: Path, *, draft: str, diary: Path) -> Path:
    """A file with a rule of the user's own, the mean, that writes into a diary which draft of it was asked."""
    file.write_text(
        "from dataclasses import dataclass\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from fedplatform.core.messages import Aggregate\n"
        "from fedplatform.federated.aggregation import Aggregator\n"
        "@dataclass(frozen=True)\n"
        "class Own(Aggregator):\n"
        "    def aggregate(self, deltas, evidence):\n"
        f"        with Path({str(diary)!r}).open('a') as diary:\n"
        f"            diary.write({draft + chr(10)!r})\n"
        "        weights = np.full(len(deltas), 1 / len(deltas))\n"
        "        return Aggregate(deltas.mean(axis=0), weights, weights == 0)\n"
    )
    return file
