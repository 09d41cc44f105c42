"""Pictures that stay on the device that computes: only draws and answers cross between it and the host."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fedplatform.core.compute import Compute
from fedplatform.data.brightness import Pixels
from fedplatform.data.images import to_images
from fedplatform.data.stored_pixels import StoredPixels

BLOCK = 64 << 20  # bytes that cross at once, so that pictures from the disk never lie in memory as a whole
Rows = slice | np.ndarray | torch.Tensor


class DevicePixels:
    """Uint8 pictures (n, channels, size, size) on a device; ``pixels[rows]`` are some of them, still there."""

    dtype = np.dtype(np.uint8)

    def __init__(self, there: torch.Tensor) -> None:
        self.there = there
        self.shape = tuple(there.shape)

    @staticmethod
    def of(pictures: Pixels | StoredPixels, compute: Compute) -> DevicePixels:
        """Copied to the device of ``compute``, some megabytes at a time."""
        there = torch.empty(pictures.shape, dtype=torch.uint8, device=compute.place)
        step = max(1, BLOCK // max(1, int(np.prod(pictures.shape[1:]))))
        for start in range(0, len(pictures), step):
            there[start : start + step] = compute.sent(pictures[start : start + step])
        return DevicePixels(there)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Rows) -> DevicePixels:
        chosen = torch.tensor(rows).to(self.there.device) if isinstance(rows, np.ndarray) else rows
        return DevicePixels(self.there[chosen])

    def __iter__(self) -> Iterator[Pixels]:
        return iter(np.asarray(self))

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        """All of them, in the memory of the host."""
        del dtype, copy  # NumPy's own converts what it gets
        found: np.ndarray = self.there.cpu().numpy()
        return found


Pictures = Pixels | StoredPixels | DevicePixels


def placed(pictures: Pictures, compute: Compute) -> Pictures:
    """The pictures on the device where they fit; as they are where not, and on a CPU."""
    if isinstance(pictures, DevicePixels) or not len(pictures) or not compute.has_room(int(np.prod(pictures.shape))):
        return pictures
    return DevicePixels.of(pictures, compute)


def images_on(pictures: Pictures, compute: Compute) -> torch.Tensor:
    """Pictures (n, c, h, w) as :func:`to_images` maps them, on the device; as bytes on the way there."""
    if isinstance(pictures, DevicePixels):
        there = pictures.there
    elif compute.is_cpu:
        return to_images(np.asarray(pictures))
    else:
        there = compute.sent(np.asarray(pictures))
    return (there.float() / 255).contiguous(memory_format=torch.channels_last)
