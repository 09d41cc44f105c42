"""A DICOM file of a stranger: what its header says is checked before a pixel of it is decoded."""

from __future__ import annotations

import io
import zlib
from typing import Any

from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from fedplatform.data.dicom import shown_frames
from fedplatform.data.pictures import Pixels
from fedplatform.serving.refused import MEBIBYTE, Limits, Refused

PREAMBLE = 132  # bytes: 128 of anything, then "DICM"
LONGEST_HEADER = MEBIBYTE  # parsed, a header takes a hundred times its length in memory
PIXELS = 0x7FE00010
PIXEL_GROUP = 0x7FE0
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
JPEG, JPEG_2000 = (JPEGBaseline8Bit, JPEGExtended12Bit), (JPEG2000Lossless, JPEG2000)
MOST_PASSES = 64  # of a JPEG over its picture, as in intake
MOST_TILES = 4096  # of a JPEG 2000; each costs its decoder kilobytes


def dicom_frames(data: bytes, limits: Limits) -> list[Pixels]:
    """The frames of a DICOM file (h, w) or (h, w, 3) as training would see them; see :func:`read_dicom`.

    Raises :class:`Refused`, or whatever pydicom raises on broken bytes.
    """
    stream = io.BytesIO(data)
    stream.seek(PREAMBLE)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2)
    syntax = UID(str(meta.get("TransferSyntaxUID") or ""))
    if syntax not in (*NATIVE, *JPEG, *JPEG_2000, RLELossless):
        raise Refused(
            415, "The DICOM file's transfer syntax is not read here; send it uncompressed, as JPEG, JPEG 2000 or RLE."
        )
    body = data[stream.tell() :]
    if syntax == DeflatedExplicitVRLittleEndian:
        body = _inflated(body, limits)
    dataset = _parsed(body, syntax)
    dataset.file_meta = meta
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > limits.scans:
        raise Refused(413, f"The DICOM file holds too many frames: {limits.scans} are allowed.")
    limits.check(rows, columns, pictures=frames)
    if syntax not in NATIVE:
        _check_frames(dataset, syntax, rows, columns, frames)
    return shown_frames(dataset, name="the upload")


def _inflated(body: bytes, limits: Limits) -> bytes:
    """A deflated data set, as long as its pixels may be."""
    most = LONGEST_HEADER + 4 * limits.pixels
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(body, most)
    if inflater.unconsumed_tail:
        raise Refused(413, f"The picture is too large: an upload may have {limits.pixels:,} pixels.")
    if not inflater.eof:
        raise Refused(400, "The DICOM file is broken or cut short.")
    return inflated


def _parsed(body: bytes, syntax: UID) -> Dataset:
    """The elements up to the pixels.

    The first reading sees the beginning of the file alone and proves that the pixels come there; so the second one
    finds no more elements than fit there, and what stands behind the pixels is never looked at.
    """
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    header = _Until(pixels=False)
    try:
        read_dataset(io.BytesIO(body[:LONGEST_HEADER]), implicit, little, stop_when=header)
    except Exception as error:
        if len(body) <= LONGEST_HEADER:
            raise Refused(400, "The DICOM file is broken or cut short.") from error
    if not header.found and len(body) > LONGEST_HEADER:
        raise Refused(413, f"The DICOM file's header is too long: {LONGEST_HEADER:,} bytes are allowed.")
    if not header.found:
        raise Refused(422, "The DICOM file holds no picture.")
    return read_dataset(io.BytesIO(body), implicit, little, stop_when=_Until(pixels=True))


class _Until:
    """Tells pydicom where to stop: at the pixels, or behind them."""

    def __init__(self, *, pixels: bool) -> None:
        self.pixels = pixels
        self.found = False

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        del vr, length
        if self.found:
            return True
        self.found = tag >> 16 == PIXEL_GROUP
        return self.found and not self.pixels


def _check_frames(dataset: Any, syntax: UID, rows: int, columns: int, frames: int) -> None:
    """Refuse compressed frames that would come out larger than the header says."""
    for number, frame in enumerate(generate_frames(dataset.PixelData, number_of_frames=frames)):
        if number >= frames:
            raise Refused(422, "The DICOM file holds more frames than its header says.")
        if syntax == RLELossless:
            _check_run_lengths(frame, rows * columns)
            continue
        passes = frame.count(b"\xff\xda") if syntax in JPEG else 1
        tiles = _tiles(frame) if syntax in JPEG_2000 else 1
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
            if image.size != (columns, rows) or passes > MOST_PASSES or tiles > MOST_TILES:
                raise Refused(422, "The DICOM file's compressed frames are not what its header says.")


def _tiles(frame: bytes) -> int:
    """In how many tiles a JPEG 2000 codestream is cut (ISO/IEC 15444-1, A.5.1)."""
    if frame[:4] != b"\xff\x4f\xff\x51":
        raise Refused(422, "The DICOM file's compressed frames are not what its header says.")
    x, y, _, _, wide, high = (int.from_bytes(frame[at : at + 4], "big") for at in range(8, 32, 4))
    return -(-x // max(wide, 1)) * -(-y // max(high, 1))


def _check_run_lengths(frame: bytes, pixels: int) -> None:
    """Refuse an RLE frame a segment of which runs on past the picture (DICOM PS3.5, annex G): 64 bytes a byte."""
    count = int.from_bytes(frame[:4], "little")
    if len(frame) < 64 or not 1 <= count <= 15:
        raise Refused(400, "The DICOM file is broken or cut short.")
    starts = [int.from_bytes(frame[4 * number : 4 * number + 4], "little") for number in range(1, count + 1)]
    for start, end in zip(starts, [*starts[1:], len(frame)], strict=True):
        position, length = start, 0
        while position < min(end, len(frame)) and length <= pixels + 1:
            control = frame[position]
            literal = control < 128
            length += control + 1 if literal else 257 - control if control > 128 else 0
            position += control + 2 if literal else 2 if control > 128 else 1
        if length > pixels + 1:  # a segment may be padded to an even length
            raise Refused(422, "The DICOM file's compressed frames are not what its header says.")
