"""A NIfTI volume of a stranger: how long it must be is read from its header, and no more is inflated."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator

import nibabel as nib

from fedplatform.data.brightness import Pixels
from fedplatform.data.error import DataError
from fedplatform.data.nifti import volume_of
from fedplatform.serving.refused import Limits, Refused

HEADER = 540  # bytes of a NIfTI-2 header; a NIfTI-1 header has 348
PADDING = 65_536  # zeros that may stand behind the last voxel: tools fill up blocks
CUT_SHORT = "The NIfTI volume is broken or cut short."


def is_nifti(start: bytes) -> bool:
    """Whether a file that begins so is a NIfTI-1 or NIfTI-2 volume in a single file."""
    length = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    first, second = start[344:348] == b"n+1\x00", start[4:12] == b"n+2\x00\r\n\x1a\n"
    return (first and 348 in length) or (second and 540 in length)


def inflated_start(data: bytes) -> bytes:
    """The first bytes of a gzip file, as many as a header has."""
    try:
        return gzip.GzipFile(fileobj=io.BytesIO(data)).read(HEADER)
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(400, "The gzip archive is broken or cut short.") from error


def nifti_slices(data: bytes, limits: Limits, slice_number: int | None) -> Iterator[tuple[int, Pixels]]:
    """Axial slices of a volume with their numbers, as training would see them: :func:`looked_at`, or one by number.

    ``data`` begins as :func:`is_nifti` wants it, or is a gzip file of such. Raises :class:`Refused`, or whatever
    nibabel raises on broken bytes.
    """
    compressed = not is_nifti(data)
    start = inflated_start(data) if compressed else data[:HEADER]
    kind = nib.Nifti1Image if start[344:348] == b"n+1\x00" else nib.Nifti2Image
    header = kind.header_class(start[: kind.header_class.template_dtype.itemsize], check=False)
    shape, offset = header.get_data_shape(), header.get_data_offset()
    voxel = header.get_data_dtype()
    if len(shape) < 3 or any(extent != 1 for extent in shape[3:]):
        raise Refused(422, "A NIfTI file must hold one volume of three dimensions.")
    if voxel.kind not in "iuf":
        raise Refused(422, "The voxels of a NIfTI volume must be real numbers.")
    limits.check(*shape[:3])
    if not 0 <= offset <= limits.header:
        raise Refused(413, f"The NIfTI volume's header is too long: {limits.header:,} bytes are allowed.")
    length = int(offset) + math.prod(shape) * voxel.itemsize
    if compressed:
        data = _inflated(data, length, limits)
    if len(data) < length:
        raise Refused(400, CUT_SHORT)
    try:
        volume = volume_of(kind.from_bytes(data), name="the upload")
    except DataError as error:
        raise Refused(422, "The NIfTI volume holds no picture: no finite voxel, or no orientation.") from error
    if slice_number is not None and not 0 <= slice_number < volume.depth:
        raise Refused(422, f"The volume has slices 0 to {volume.depth - 1}.")
    limits.check(*volume.stored.shape[:2])
    numbers = looked_at(volume.depth, limits.slices) if slice_number is None else [slice_number]
    yield from zip(numbers, volume.slices(numbers), strict=True)


def looked_at(depth: int, at_most: int) -> list[int]:
    """Which slices of a volume are looked at: ``at_most``, evenly spaced over its central half.

    Training sees central slices, too. A volume that is not twice as deep gives that many central ones in a row.
    """
    count = min(at_most, depth)
    span = max(count, depth // 2)
    span += (depth - span) % 2  # as many slices above as below
    first = (depth - span) // 2
    return [first + ((2 * number + 1) * span - 1) // (2 * count) for number in range(count)]


def _inflated(data: bytes, length: int, limits: Limits) -> bytes:
    """A gzip file's contents: ``length`` bytes, and behind them nothing but some zeros."""
    if length > limits.inflated:
        raise Refused(413, f"The NIfTI volume is too large: it may inflate to {limits.inflated:,} bytes.")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            inflated = file.read(length)
            behind = file.read(PADDING + 1)  # at its end the checksum is compared
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(400, CUT_SHORT) from error
    if len(behind) > PADDING or any(behind):
        raise Refused(413, "The NIfTI volume goes on behind its last voxel.")
    return inflated
