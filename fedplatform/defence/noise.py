"""Where the noise of a purifier comes from: of its own for every scan, whatever else is in the batch."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch

LEVELS = 2**16 - 1


@runtime_checkable
class Noise(Protocol):
    """A source of standard normal noise."""

    def draw(self, images: torch.Tensor, copies: int) -> torch.Tensor:
        """Noise (n, copies, c, h, w) for images (n, c, h, w) in [0, 1]."""
        ...


@dataclass(frozen=True)
class KeyedNoise:
    """Noise that follows from a secret key and the scan: an attacker cannot foresee it, an auditor can repeat it.

    The stream of a scan is HMAC-SHA256 of its shape, its pixels rounded to 16 bits and the ``counter``, so a scan alone
    and in a batch gets the same, its first copies do not depend on how many there are, and another ``counter`` gives
    other noise. Raises ValueError without a key.
    """

    key: bytes = field(repr=False)
    counter: int = 0

    def __post_init__(self) -> None:
        if not self.key:
            raise ValueError("KeyedNoise needs a key, got an empty one")

    def draw(self, images: torch.Tensor, copies: int) -> torch.Tensor:
        """Noise (n, copies, c, h, w); constant in the images as far as a gradient is concerned."""
        pixels = (images.detach().cpu().double().clamp(0, 1) * LEVELS).round().numpy().astype("<u2")
        heading = f"{tuple(pixels.shape[1:])} {self.counter} ".encode()
        streams = [_stream(hmac.digest(self.key, heading + scan.tobytes(), "sha256")) for scan in pixels]
        drawn = np.empty((len(pixels), copies, *pixels.shape[1:]), np.float32)
        for stream, row in zip(streams, drawn, strict=True):
            stream.standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(drawn).to(images.device)


@dataclass(frozen=True, eq=False)
class FreshNoise:
    """Noise from a generator, new at every call: for an attacker who averages over it, and for judging what he made."""

    generator: torch.Generator

    def draw(self, images: torch.Tensor, copies: int) -> torch.Tensor:
        """Noise (n, copies, c, h, w)."""
        shape = (len(images), copies, *images.shape[1:])
        return torch.randn(shape, generator=self.generator).to(images.device)


def further_noise(noise: torch.Tensor) -> list[np.random.Generator]:
    """A stream for each row of ``noise`` (n, c, h, w), from which a purifier of many steps draws the rest it needs."""
    rows = noise.detach().cpu().contiguous().numpy().astype("<f4")
    return [_stream(hashlib.sha256(row.tobytes()).digest()) for row in rows]


def _stream(digest: bytes) -> np.random.Generator:
    """The stream of a digest. NumPy's, for it takes 128 bits of it: a generator of PyTorch takes 32, and they could
    be tried out one after the other.
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))
