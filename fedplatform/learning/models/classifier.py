"""Classifiers that take scans in [0, 1]: the small network of this project, and every network of timm by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from fedplatform.learning.models.torchvision_ops import import_timm


@runtime_checkable
class ModelBuilder(Protocol):
    """Builds a network; an implementation is a frozen dataclass or a plain function.

    The body of a classifier maps normalised images (n, channels, size, size) to logits (n, num_classes).
    """

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module: ...


@runtime_checkable
class Penalised(Protocol):
    """A body with a wish of its own beside the right answer, such as a mixture's for a decided gate."""

    def penalised(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, num_classes) of normalised images (n, c, h, w), and what training adds to the loss, a scalar."""
        ...


class Classifier(nn.Module):
    """A body behind its mean/std layer, so that every caller, and every attack, works in [0, 1] pixels.

    The constants are the same for all hospitals: measured ones would have to be shared, and leak.
    """

    constant_names = ("mean", "std")
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, body: nn.Module, *, mean: float = 0.5, std: float = 0.25) -> None:
        super().__init__()
        self.body = body
        self.row_major = False  # whether the body takes that layout only, as ``view`` after a convolution does
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n, num_classes) of images (n, c, h, w) in [0, 1]."""
        logits: torch.Tensor = self.body(self._normalised(images))
        return logits

    def penalised(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits as from :meth:`forward`, and what the body wants added to the loss; None from most bodies."""
        if isinstance(self.body, Penalised):
            return self.body.penalised(self._normalised(images))
        return self(images), None

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        normalised = (images - self.mean) / self.std
        return normalised.contiguous() if self.row_major else normalised

    def head_names(self) -> frozenset[str]:
        """State names of the last layer: timm's own word for it, the body's ``head``, or else its last linear layer.

        Raises ValueError where there is none.
        """
        ask = getattr(self.body, "get_classifier", None)
        head = ask() if ask is not None else getattr(self.body, "head", None)
        if head is None:
            head = next((module for module in reversed([*self.modules()]) if isinstance(module, nn.Linear)), None)
        inside = {id(value) for value in head.state_dict(keep_vars=True).values()} if head is not None else set()
        names = frozenset(name for name, value in self.state_dict(keep_vars=True).items() if id(value) in inside)
        if not names:
            raise ValueError(f"a {type(self.body).__name__} has no last layer that could stay in the hospital")
        return names


@dataclass(frozen=True)
class SmallCnn:
    """Four convolution blocks with batch normalisation and global average pooling; made for CPUs."""

    width: int = 16

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        """About 62,000 parameters at the default width, for images of at least 16 pixels."""
        if size < 16:
            raise ValueError(f"small_cnn halves the image four times and needs size >= 16, got {size}")
        layers: list[nn.Module] = []
        for wide in (self.width, 2 * self.width, 4 * self.width, 4 * self.width):
            layers += [
                nn.Conv2d(channels, wide, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
            channels = wide
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


@dataclass(frozen=True)
class TimmModel:
    """Any classifier of timm (Wightman) by its name there, untrained: ``TimmModel("resnet18")``."""

    name: str

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        """Networks with a fixed grid (vision transformers) are built for ``size``; the rest take any."""
        timm = import_timm()
        if not timm.is_model(self.name):
            raise ValueError(f"timm has no model called {self.name!r}")
        settings = {"pretrained": False, "in_chans": channels, "num_classes": num_classes}
        try:
            model: nn.Module = timm.create_model(self.name, img_size=size, **settings)
        except TypeError:  # a convolutional network takes no img_size
            model = timm.create_model(self.name, **settings)
        return model
