"""One NIfTI volume, as a few central axial slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation

from fedplatform.data.aspect import square_pixels
from fedplatform.data.brightness import Pixels, Values, sample, stretch, visible_range
from fedplatform.data.error import DataError


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume (x, y, z), to the right, to the front and to the head, as it is stored: seen, and not copied.

    The true values are ``stored * slope + intercept``; ``aspect`` says how many times as high as wide a pixel of an
    axial slice is.
    """

    stored: Values
    slope: float
    intercept: float
    shown_range: tuple[float, float]
    aspect: float

    @property
    def depth(self) -> int:
        """How many axial slices there are."""
        return int(self.stored.shape[2])

    def slices(self, numbers: Sequence[int]) -> Iterator[Pixels]:
        """Axial slices, counted from the feet, as (h, w) uint8: anterior up, the patient's right at the left.

        Brightness is scaled over the whole volume, see :func:`visible_range`. A voxel that is not a number (outside
        the field of view) is black.
        """
        low, high = self.shown_range
        for number in numbers:
            plane = self.stored[:, :, number].astype(np.float64) * self.slope + self.intercept
            shown = stretch(np.nan_to_num(plane, nan=low, posinf=high, neginf=low), low=low, high=high)
            # A radiologist looks up at the slice from the feet.
            yield square_pixels(np.ascontiguousarray(shown[::-1, ::-1].T), aspect=self.aspect)


def count_slices(path: Path, *, at_most: int) -> int:
    """How many slices :func:`read_slices` gives, read from the header alone."""
    image = _loaded(path)
    shape, ornt = _shape(image, name=str(path)), _orientation(image, name=str(path))
    return min(at_most, shape[int(np.argmax(ornt[:, 0] == 2))])


def read_slices(path: Path, *, at_most: int) -> list[Pixels]:
    """The central axial slices of a volume from foot to head; see :meth:`Volume.slices`.

    Raises DataError with the file's name where it is no whole 3-D volume of real numbers.
    """
    volume = volume_of(_loaded(path), name=str(path))
    slices = min(at_most, volume.depth)
    first = (volume.depth - slices) // 2
    return list(volume.slices(range(first, first + slices)))


def volume_of(image: Any, *, name: str) -> Volume:
    """The voxels of a nibabel image that was read from a file; ``name`` stands in the error.

    Raises DataError where it is no whole 3-D volume of real numbers, or where none of them is finite.
    """
    shape, ornt = _shape(image, name=name), _orientation(image, name=name)
    try:
        stored = image.dataobj.get_unscaled().reshape(shape, order="F")
        slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    except Exception as error:  # zlib.error, EOFError, OSError, ValueError, ...: whatever the cut-off bytes provoke
        raise DataError(f"{name}: not a whole NIfTI volume ({_first_line(error)})") from error
    if stored.dtype.kind not in "iuf":
        raise DataError(f"{name}: needs voxels that are real numbers, got {stored.dtype}")
    flat = stored.reshape(-1, order="F")
    sampled = sample(flat)
    if not sampled.size:
        sampled = sample(flat[np.isfinite(flat)])
    if not sampled.size:
        raise DataError(f"{name}: holds no finite voxel")
    zooms = np.abs(np.asarray(image.header.get_zooms()[:3], np.float64))
    right, front = (float(zooms[int(np.argmax(ornt[:, 0] == axis))]) for axis in range(2))
    aspect = front / right if right > 0 and np.isfinite([right, front]).all() else 1.0
    shown_range = visible_range(sampled * slope + intercept)
    return Volume(apply_orientation(stored, ornt), slope, intercept, shown_range, aspect)


def _orientation(image: Any, *, name: str) -> Any:
    """Which axis of the patient each axis of the voxels runs along, and in which direction."""
    try:
        ornt = io_orientation(image.affine)
    except Exception as error:
        raise DataError(f"{name}: not a NIfTI volume ({_first_line(error)})") from error
    if np.isnan(ornt).any():
        raise DataError(f"{name}: not a NIfTI volume (its axes have no direction)")
    return ornt


def _loaded(path: Path) -> Any:
    try:
        return nib.load(path)
    except Exception as error:
        raise DataError(f"{path}: not a NIfTI volume ({_first_line(error)})") from error


def _shape(image: Any, *, name: str) -> tuple[int, int, int]:
    shape = image.shape
    if len(shape) < 3 or any(extent != 1 for extent in shape[3:]):
        raise DataError(f"{name}: needs one 3-D volume, got shape {shape}")
    return int(shape[0]), int(shape[1]), int(shape[2])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
