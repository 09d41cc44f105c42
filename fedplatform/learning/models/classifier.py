"""Classifiers that take scans in [0, 1]: the small network of this project, and every network of timm by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn import functional

from fedplatform.learning.models.torchvision_ops import import_timm


@runtime_checkable
class ModelBuilder(Protocol):
    """Builds a network; an implementation is a frozen dataclass or a plain function.

    The body of a classifier maps normalised images (n, channels, size, size) to logits (n, num_classes).
    """

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module: ...


@runtime_checkable
class Normalised(Protocol):
    """A body that says which pixels it wants: ``(x - input_mean) / input_std`` of x in [0, 1], one or one a channel."""

    @property
    def input_mean(self) -> Sequence[float]: ...

    @property
    def input_std(self) -> Sequence[float]: ...


@runtime_checkable
class Penalised(Protocol):
    """A body with a wish of its own beside the right answer, such as a mixture's for a decided gate."""

    def penalised(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, num_classes) of normalised images (n, c, h, w), and what training adds to the loss, a scalar."""
        ...


class Remembering(Protocol):
    """Answers in place of the body, from what its frozen part said of the same scans before."""

    def answers(self, images: torch.Tensor) -> bool: ...

    def __call__(self, images: torch.Tensor) -> torch.Tensor: ...


class Classifier(nn.Module):
    """A body behind its mean/std layer, so that every caller, and every attack, works in [0, 1] pixels.

    This is the only place where pixels are normalised: by the ``input_mean`` and ``input_std`` that the body declares
    (:class:`Normalised`), else by .5 and .25. The constants are the same for all hospitals: measured ones would have to
    be shared, and leak.
    """

    constant_names = ("mean", "std")
    mean: torch.Tensor
    std: torch.Tensor
    features: Remembering | None = None  # what answers for the frozen part, where that is kept on the disk

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.row_major = False  # whether the body takes that layout only, as ``view`` after a convolution does
        mean, std = (body.input_mean, body.input_std) if isinstance(body, Normalised) else ((0.5,), (0.25,))
        self.register_buffer("mean", _per_channel(mean))
        self.register_buffer("std", _per_channel(std))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n, num_classes) of images (n, c, h, w) in [0, 1]."""
        if self.features is not None and self.features.answers(images):
            return self.features(images)
        logits: torch.Tensor = self.body(self.normalised(images))
        return logits

    def penalised(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits as from :meth:`forward`, and what the body wants added to the loss; None from most bodies."""
        if isinstance(self.body, Penalised):
            return self.body.penalised(self.normalised(images))
        return self(images), None

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Images as the body takes them."""
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


class OrdinalClassifier(Classifier):
    """A classifier of k ordered classes, whose body answers k - 1 numbers: logits of P(y > j | y > j - 1) (CORN).

    To everybody else it answers log-probabilities of the classes, which are logits to whoever asks for logits.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (n, num_classes) of images (n, c, h, w) in [0, 1]."""
        return log_probabilities_of_grades(super().forward(images))

    def penalised(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same, and what the body wants added to the loss."""
        if isinstance(self.body, Penalised):
            borders, penalty = self.body.penalised(self.normalised(images))
            return log_probabilities_of_grades(borders), penalty
        return self(images), None


def log_probabilities_of_grades(borders: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (n, k) of ordered classes from logits (n, k - 1) of P(y > j | y > j - 1).

    log P(y = j) is the sum of the logarithms of having gone beyond each border before j and of not going beyond j.
    """
    borders = borders.float()  # sums of logarithms want more digits than bf16 has
    beyond = functional.logsigmoid(borders).cumsum(dim=1)
    reached = torch.cat([torch.zeros_like(beyond[:, :1]), beyond], dim=1)
    stays = torch.cat([functional.logsigmoid(-borders), torch.zeros_like(beyond[:, :1])], dim=1)
    return reached + stays


def _per_channel(values: Sequence[float]) -> torch.Tensor:
    """A scalar for one value, (c, 1, 1) for one a channel."""
    return torch.tensor(values[0]) if len(values) == 1 else torch.tensor([*values]).reshape(-1, 1, 1)


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
    """Any classifier of timm (Wightman) by its name there: ``TimmModel("resnet18")``.

    ``pixels`` says how they are normalised: ``plain``, by .5 and .25, or ``timm``, as timm's weights of that name were
    trained; a scan that is not of three channels gets the mean of their constants.
    """

    name: str
    pixels: Literal["plain", "timm"] = "plain"

    @property
    def imagenet_name(self) -> str:
        """The network whose ImageNet weights fit."""
        return self.name

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        """Networks with a fixed grid (vision transformers) are built for ``size``; the rest take any."""
        timm = import_timm()
        if not timm.is_model(self.name):
            raise ValueError(f"timm has no model called {self.name!r}")
        if self.pixels not in ("plain", "timm"):
            raise ValueError(f"pixels are plain or timm, got {self.pixels!r}")
        settings = {"pretrained": False, "in_chans": channels, "num_classes": num_classes}
        try:
            model: nn.Module = timm.create_model(self.name, img_size=size, **settings)
        except TypeError:  # a convolutional network takes no img_size
            model = timm.create_model(self.name, **settings)
        if self.pixels == "timm":
            wanted: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
            for attribute, values in (("input_mean", wanted["mean"]), ("input_std", wanted["std"])):
                setattr(model, attribute, tuple(values) if channels == len(values) else (sum(values) / len(values),))
        return model
