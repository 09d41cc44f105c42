"""One NIfTI volume, as a few central axial slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fedplatform.data.error import DataError
from fedplatform.data.pictures import Pixels, stretch

# A few voxels (vessels, metal) are far brighter than all tissue; without the cut the tissue would be nearly black.
DARKEST, BRIGHTEST = 0.5, 99.5


def count_slices(path: Path, *, at_most: int) -> int:
    """How many slices :func:`read_slices` gives, read from the header alone."""
    return min(at_most, int(_canonical(path).shape[2]))


def read_slices(path: Path, *, at_most: int) -> list[Pixels]:
    """The central axial slices of a volume from foot to head, (h, w) uint8, anterior up, patient right at the left.

    Brightness is scaled over the whole volume, from its 0.5 to its 99.5 percentile. A voxel that is not a number
    (outside the field of view) is black. Raises DataError with the file's name where it is no whole 3-D volume.
    """
    image = _canonical(path)
    depth = int(image.shape[2])
    slices = min(at_most, depth)
    return axial_slices(image, first=(depth - slices) // 2, count=slices, name=str(path))


def axial_slices(image: Any, *, first: int, count: int, name: str) -> list[Pixels]:
    """Slices of a volume as :func:`canonical` gives it, ``count`` from ``first`` on; ``name`` stands in the error."""
    try:
        volume = np.asarray(image.dataobj, np.float32)
    except Exception as error:  # zlib.error, EOFError, OSError, ValueError, ...: whatever the cut-off bytes provoke
        raise DataError(f"{name}: not a whole NIfTI volume ({str(error).splitlines()[0]})") from error
    volume = volume.reshape(image.shape[:3])
    finite = volume[np.isfinite(volume)]
    if finite.size == 0:
        raise DataError(f"{name}: holds no finite voxel")
    low, high = np.percentile(finite, (DARKEST, BRIGHTEST))
    shown = np.nan_to_num(volume[..., first : first + count], nan=low, posinf=high, neginf=low)
    # Axes are now (to the right, to the front, to the head); a radiologist looks up at the slice from the feet.
    return list(stretch(shown[::-1, ::-1].transpose(2, 1, 0), low=float(low), high=float(high)))


def _canonical(path: Path) -> Any:
    try:
        image = nib.load(path)
    except Exception as error:
        raise DataError(f"{path}: not a NIfTI volume ({str(error).splitlines()[0]})") from error
    return canonical(image, name=str(path))


def canonical(image: Any, *, name: str) -> Any:
    """A nibabel image with its axes to the right, to the front and to the head; raises DataError unless it is 3-D."""
    try:
        turned = nib.as_closest_canonical(image)
    except Exception as error:
        raise DataError(f"{name}: not a NIfTI volume ({str(error).splitlines()[0]})") from error
    shape = turned.shape
    if len(shape) < 3 or any(extent != 1 for extent in shape[3:]):
        raise DataError(f"{name}: needs one 3-D volume, got shape {shape}")
    return turned
