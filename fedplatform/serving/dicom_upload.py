"""A DICOM file of a stranger: what its header says is checked before a pixel of it is decoded."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from fedplatform.data.brightness import Pixels
from fedplatform.data.codecs import BOXES, JPEG, JPEG_2000, JPEG_LS, run_length_planes
from fedplatform.data.dicom import frame_count, shown_frames
from fedplatform.data.dicom_file import DicomFile, HeaderLimits, HeaderTooLong, NoPixels
from fedplatform.data.origin import Origin
from fedplatform.serving.refused import Limits, Refused

MOST_ELEMENTS = 100_000  # parsed, each takes up to a kilobyte; an enhanced MR of 200 frames has some 20,000
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
MOST_PASSES = 64  # of a JPEG over its picture, as in intake
MOST_TILES = 4096  # of a JPEG 2000; each costs its decoder kilobytes
BROKEN = "The DICOM file is broken or cut short."
OTHER_FRAMES = "The DICOM file's compressed frames are not what its header says."
START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # the last one is JPEG-LS's


def dicom_frames(data: bytes, limits: Limits) -> tuple[Origin, Iterator[Pixels]]:
    """What a DICOM file is of, and its frames (h, w) or (h, w, 3) as training would see them; see :func:`read_dicom`.

    Raises :class:`Refused`, or whatever pydicom raises on broken bytes.
    """
    file = DicomFile.of(data)
    if file.syntax not in (*NATIVE, *JPEG, *JPEG_LS, *JPEG_2000, RLELossless):
        raise Refused(
            415, "The DICOM file's transfer syntax is not read here; send it uncompressed, as JPEG, JPEG 2000 or RLE."
        )
    dataset = _parsed(file, limits)
    rows, columns, frames = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0), frame_count(dataset)
    if frames > limits.scans:
        raise Refused(413, f"The DICOM file holds too many frames: {limits.scans} are allowed.")
    limits.check(rows, columns, pictures=frames)
    if file.syntax not in NATIVE:
        _check_frames(dataset, file.syntax, rows, columns, frames)
    return Origin.of(dataset), shown_frames(dataset, name="the upload")


def _parsed(file: DicomFile, limits: Limits) -> Dataset:
    """The elements up to the pixels and the pixels, as long as the header may be."""
    try:
        inflated = file.inflated(at_most=limits.bytes)
        return inflated.parsed(HeaderLimits(limits.header, MOST_ELEMENTS))
    except OverflowError:
        raise Refused(413, f"The DICOM file is too large: it may inflate to {limits.bytes:,} bytes.") from None
    except HeaderTooLong:
        raise Refused(
            413,
            f"The DICOM file's header is too long: {limits.header:,} bytes and {MOST_ELEMENTS:,} elements are allowed.",
        ) from None
    except NoPixels:
        raise Refused(422, "The DICOM file holds no picture.") from None
    except Exception as error:
        raise Refused(400, BROKEN) from error


def _check_frames(dataset: Dataset, syntax: UID, rows: int, columns: int, frames: int) -> None:
    """Refuse compressed frames that would come out larger than the header says."""
    samples = int(dataset.get("SamplesPerPixel") or 1)
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    extended = (offsets[0], offsets[1]) if offsets[0] and offsets[1] else None
    cut = generate_frames(dataset.PixelData, number_of_frames=frames, extended_offsets=extended)
    for number, frame in enumerate(cut):
        if number >= frames:
            raise Refused(422, "The DICOM file holds more frames than its header says.")
        if syntax == RLELossless:
            _check_run_lengths(frame, rows * columns)
            continue
        passes = frame.count(b"\xff\xda") if syntax in JPEG else 1
        found = _of_codestream(frame) if syntax in JPEG_2000 else _of_jpeg(frame)
        if found != (rows, columns, samples) or passes > MOST_PASSES:
            raise Refused(422, OTHER_FRAMES)


def _of_jpeg(frame: bytes) -> tuple[int, int, int] | None:
    """Height, width and components of a JPEG or JPEG-LS frame, from its first start-of-frame marker."""
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in START_OF_FRAME:
            height, width = (int.from_bytes(frame[place : place + 2], "big") for place in (at + 5, at + 7))
            return height, width, frame[at + 9]
        # Fill bytes and markers without a length come before a length; all others say how long they are.
        lone = marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7
        at += 1 if marker == 0xFF else 2 if lone else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _of_codestream(frame: bytes) -> tuple[int, int, int] | None:
    """Height, width and components of a JPEG 2000 frame, from its SIZ marker (ISO/IEC 15444-1, A.5.1).

    A frame of too many tiles gives None. What stands around the codestream are the boxes of a JP2 file (annex I).
    """
    at = _codestream_in_boxes(frame) if frame.startswith(BOXES) else 0
    if at is None or frame[at : at + 4] != b"\xff\x4f\xff\x51" or len(frame) < at + 42:
        return None
    right, low, left, top, wide, high = (
        int.from_bytes(frame[place : place + 4], "big") for place in range(at + 8, at + 32, 4)
    )
    tiles = -(-right // max(wide, 1)) * -(-low // max(high, 1))
    return None if tiles > MOST_TILES else (low - top, right - left, int.from_bytes(frame[at + 40 : at + 42], "big"))


def _codestream_in_boxes(frame: bytes) -> int | None:
    at = 0
    while at + 8 <= len(frame):
        length, kind = int.from_bytes(frame[at : at + 4], "big"), frame[at + 4 : at + 8]
        if kind == b"jp2c":
            return at + (16 if length == 1 else 8)
        if length < 8:
            return None
        at += length
    return None


def _check_run_lengths(frame: bytes, pixels: int) -> None:
    """Refuse an RLE frame a segment of which runs on past the picture: 64 bytes a byte."""
    try:
        run_length_planes(frame, pixels)
    except OverflowError:
        raise Refused(422, OTHER_FRAMES) from None
    except (ValueError, RuntimeError):
        raise Refused(400, BROKEN) from None
