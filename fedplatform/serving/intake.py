"""An upload: bytes of a stranger to scans of the size and colour that the networks were trained on, or a refusal."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fedplatform.data.brightness import Pixels
from fedplatform.data.dicom_file import begins_like_dicom
from fedplatform.data.error import DataError
from fedplatform.data.origin import Origin
from fedplatform.data.pictures import decode_pages, fit, page_numbers
from fedplatform.serving.content import check_size, is_blank, is_noise
from fedplatform.serving.dicom_upload import dicom_frames
from fedplatform.serving.nifti_upload import inflated_start, is_nifti, nifti_slices
from fedplatform.serving.refused import Limits, Refused

__all__ = ["Limits", "Refused", "Study", "read_scans", "read_study"]

TAKEN = "send a PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI file"
MOST_PASSES = 64  # of a JPEG over its picture: progressive ones make about ten, and each costs a whole decoding
GZIP = b"\x1f\x8b"
PICTURES = (  # how files begin that Pillow reads, and what it calls them
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"BM", "BMP"),
)
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # bytes; "BM" alone begins many a text
OTHER_KINDS = (  # how files begin that are sent by mistake or in disguise
    (b"PK", "a ZIP archive"),
    (b"GIF8", "a GIF"),
    (b"%PDF", "a PDF"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"#!", "a program"),
    (b"RIFF", "a RIFF file that is no WebP"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"PAR1", "a Parquet file"),
    (b"{", "JSON"),
)
BLANK = "The picture is blank: all of its pixels are alike."
NOISE = "The picture is noise: its pixels have nothing to do with their neighbours."
# One decoding at a time in a process: so a process holds at most one picture that is as large as the limits allow, and
# what is quiet meanwhile belongs to the whole process, and is not changed by two at once.
_alone = threading.Lock()


@dataclass(frozen=True, eq=False)
class Study:
    """What an upload shows: ``scans`` (n, channels, size, size) uint8, and where each of them stands in the file.

    ``slices`` are the numbers of a NIfTI volume's slices, from the feet, or None for a file of another kind. ``origin``
    is what the header says of a DICOM file.
    """

    scans: np.ndarray
    slices: tuple[int, ...] | None
    origin: Origin


def read_scans(data: bytes, *, size: int, channels: int, limits: Limits, slice_number: int | None = None) -> np.ndarray:
    """The scans (n, channels, size, size) uint8 of a file; see :func:`read_study`."""
    return read_study(data, size=size, channels=channels, limits=limits, slice_number=slice_number).scans


def read_study(data: bytes, *, size: int, channels: int, limits: Limits, slice_number: int | None = None) -> Study:
    """The scans of a PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI file.

    Which of them it is, the bytes say and no file name. Pixels are those that training saw: a DICOM file's window and
    photometric interpretation hold, all of its frames are given; of a NIfTI volume (.nii or .nii.gz) several central
    axial slices, or ``slice_number``, counted from 0 at the feet. Pages, frames and slices that are blank are left out
    where others are not. Raises :class:`Refused`, and nothing else, whatever the bytes are: 400 broken, 413 too large,
    415 of no kind that is read here, 422 whole but not a scan.
    """
    if not data:
        raise Refused(400, "The upload is empty.")
    if len(data) > limits.bytes:
        raise Refused(413, f"The upload is too large: {limits.bytes:,} bytes are allowed.")
    with _alone, _quiet(), np.errstate(divide="raise", invalid="raise"):
        try:
            origin, pictures = _pictures(data, limits, slice_number)
            return _study(origin, pictures, size=size, channels=channels)
        except Refused:
            raise
        except Exception as error:  # the decoders' own types are too many to name, and their words not for strangers
            raise Refused(400, "The file is broken: it begins like a scan, but cannot be read.") from error


def _study(origin: Origin, pictures: Iterable[tuple[int | None, Pixels]], *, size: int, channels: int) -> Study:
    """The pictures that show something, fitted one by one, so that no two of them are in memory in full."""
    fitted: list[Pixels] = []
    numbers: list[int] = []
    refused = BLANK
    for number, picture in pictures:
        check_size(picture)
        if is_blank(picture):
            continue
        if is_noise(picture):
            refused = NOISE
            continue
        fitted.append(fit(picture, size=size, channels=channels))
        if number is not None:
            numbers.append(number)
    if not fitted:
        raise Refused(422, refused)
    return Study(np.stack(fitted), tuple(numbers) if numbers else None, origin)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the libraries' warnings, which quote the upload and with it a patient's name, out of the server's log."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel.global", "PIL.TiffImagePlugin")]
    before = [logger.disabled for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.disabled = True
        try:
            yield
        finally:
            for logger, disabled in zip(loggers, before, strict=True):
                logger.disabled = disabled


def _pictures(
    data: bytes, limits: Limits, slice_number: int | None
) -> tuple[Origin, Iterable[tuple[int | None, Pixels]]]:
    """What the header says of a file, and its pictures one by one, those of a volume with their numbers."""
    start = data
    if data.startswith(GZIP):
        start = inflated_start(data)
        if not is_nifti(start):
            raise Refused(415, f"This is a gzip archive of something that is no NIfTI volume; {TAKEN}.")
    if is_nifti(start):
        return Origin(), nifti_slices(data, limits, slice_number)
    if slice_number is not None:
        raise Refused(422, "A slice number goes with a NIfTI volume only.")
    kind = _picture_kind(data)
    if kind is None and not begins_like_dicom(data[:140]):
        raise Refused(415, f"This is {_other_kind(data)}; {TAKEN}.")
    origin, pages = dicom_frames(data, limits) if kind is None else (Origin(), _pages(data, kind, limits))
    return origin, ((None, page) for page in pages)


def _picture_kind(data: bytes) -> str | None:
    """What Pillow calls a file that begins so, or None where it is no picture of a kind that is read here."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    kind = next((kind for beginning, kind in PICTURES if data.startswith(beginning)), None)
    return None if kind == "BMP" and int.from_bytes(data[14:18], "little") not in BMP_HEADERS else kind


def _pages(data: bytes, kind: str, limits: Limits) -> list[Pixels]:
    name = "WebP" if kind == "WEBP" else kind
    if kind == "JPEG" and data.count(b"\xff\xda") > MOST_PASSES:
        raise Refused(422, f"The JPEG passes over its picture more than {MOST_PASSES} times.")
    if kind == "WEBP":
        limits.check(*_webp_shape(data))  # whatever opens it makes room for all of it
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:  # reads headers alone
            limits.check(image.height, image.width)
            numbers = page_numbers(image)
            if len(numbers) > limits.scans:
                raise Refused(413, f"The {name} holds too many pages: {limits.scans} are allowed.")
            for number in numbers if len(numbers) > 1 else ():
                image.seek(number)
                limits.check(image.height, image.width, pictures=len(numbers))
    except Refused:
        raise
    except Image.DecompressionBombError:
        raise Refused(413, f"The picture is too large: one may have {limits.picture:,} pixels.") from None
    except Exception as error:
        raise Refused(400, f"The {name} is broken or cut short.") from error
    try:
        return decode_pages(data, name=name)
    except DataError as error:
        raise Refused(400, f"The {name} is broken or cut short.") from error


def _webp_shape(data: bytes) -> tuple[int, int]:
    """Height and width of a WebP file, from the header of its first chunk (RFC 9649)."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[27:30], "little") + 1, int.from_bytes(data[24:27], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return int.from_bytes(data[28:30], "little") & 0x3FFF, int.from_bytes(data[26:28], "little") & 0x3FFF


def _other_kind(data: bytes) -> str:
    for beginning, kind in OTHER_KINDS:
        if data.startswith(beginning):
            return kind
    text = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        return "an SVG or XML file"
    if text.startswith((b"<html", b"<!doctype html", b"<script", b"<!--", b"<")):
        return "an HTML page"
    return "of no kind that is read here"
