"""A NIfTI volume of a stranger: how long it must be is read from its header, and no more is inflated."""

from __future__ import annotations

import gzip
import io
import math
import zlib

import nibabel as nib

from fedplatform.data.error import DataError
from fedplatform.data.nifti import axial_slices, canonical
from fedplatform.data.pictures import Pixels
from fedplatform.serving.refused import MEBIBYTE, Limits, Refused

HEADER = 540  # bytes of a NIfTI-2 header; a NIfTI-1 header has 348
LONGEST_HEADER = MEBIBYTE  # with its extensions, up to where the voxels begin
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


def nifti_slice(data: bytes, limits: Limits, slice_number: int | None) -> Pixels:
    """One axial slice (h, w) of a volume, the central one or ``slice_number``, as training would see it.

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
    if not 0 <= offset <= LONGEST_HEADER:
        raise Refused(413, f"The NIfTI volume's header is too long: {LONGEST_HEADER:,} bytes are allowed.")
    length = int(offset) + math.prod(shape) * voxel.itemsize
    if compressed:
        data = _inflated(data, length)
    if len(data) < length:
        raise Refused(400, CUT_SHORT)
    try:
        image = canonical(kind.from_bytes(data), name="the upload")
        depth = int(image.shape[2])
        number = (depth - 1) // 2 if slice_number is None else slice_number
        if not 0 <= number < depth:
            raise Refused(422, f"The volume has slices 0 to {depth - 1}.")
        (pixels,) = axial_slices(image, first=number, count=1, name="the upload")
    except DataError as error:
        raise Refused(422, "The NIfTI volume holds no picture: no finite voxel, or no orientation.") from error
    return pixels


def _inflated(data: bytes, length: int) -> bytes:
    """A gzip file's contents, which must be ``length`` bytes: one more is enough to know that they are not."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            inflated = file.read(length + 1)  # at its end the checksum is compared
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(400, CUT_SHORT) from error
    if len(inflated) > length:
        raise Refused(413, "The NIfTI volume goes on behind its last voxel.")
    return inflated
