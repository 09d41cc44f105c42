"""An upload: bytes of a stranger to scans of the size and colour that the networks were trained on, or a refusal."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from fedplatform.data.error import DataError
from fedplatform.data.pictures import Pixels, decode, fit
from fedplatform.serving.dicom_upload import dicom_frames
from fedplatform.serving.nifti_upload import inflated_start, is_nifti, nifti_slice
from fedplatform.serving.refused import Limits, Refused

__all__ = ["Limits", "Refused", "read_scans"]

TAKEN = "send a PNG, JPEG, DICOM or NIfTI file"
MOST_PASSES = 64  # of a JPEG over its picture: progressive ones make about ten, and each costs a whole decoding
GZIP = b"\x1f\x8b"
OTHER_KINDS = (  # how files begin that are sent by mistake or in disguise
    (b"PK", "a ZIP archive"),
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\x00", "a TIFF"),
    (b"MM\x00*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"#!", "a program"),
    (b"RIFF", "a WebP or another RIFF file"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"PAR1", "a Parquet file"),
    (b"{", "JSON"),
)
# One decoding at a time in a process: so a process holds at most one picture that is as large as the limits allow, and
# what is quiet meanwhile belongs to the whole process, and is not changed by two at once.
_alone = threading.Lock()


def read_scans(data: bytes, *, size: int, channels: int, limits: Limits, slice_number: int | None = None) -> np.ndarray:
    """The scans of a PNG, JPEG, DICOM or NIfTI file as uint8 (n, channels, size, size).

    Which of them it is, the bytes say and no file name. Pixels are those that training saw: a DICOM file's window and
    photometric interpretation hold, all of its frames are given; of a NIfTI volume (.nii or .nii.gz) the central axial
    slice, or ``slice_number``, counted from 0 at the feet. Raises :class:`Refused`, and nothing else, whatever the
    bytes are: 400 broken, 413 too large, 415 of no kind that is read here, 422 whole but not a scan.
    """
    if not data:
        raise Refused(400, "The upload is empty.")
    if len(data) > limits.bytes:
        raise Refused(413, f"The upload is too large: {limits.bytes:,} bytes are allowed.")
    with _alone, _quiet(), np.errstate(divide="raise", invalid="raise"):
        try:
            pictures = _pictures(data, limits, slice_number)
            return np.stack([fit(picture, size=size, channels=channels) for picture in pictures])
        except Refused:
            raise
        except Exception as error:  # the decoders' own types are too many to name, and their words not for strangers
            raise Refused(400, "The file is broken: it begins like a scan, but cannot be read.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the libraries' warnings, which quote the upload and with it a patient's name, out of the server's log."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel.global")]
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


def _pictures(data: bytes, limits: Limits, slice_number: int | None) -> list[Pixels]:
    start = data
    if data.startswith(GZIP):
        start = inflated_start(data)
        if not is_nifti(start):
            raise Refused(415, f"This is a gzip archive of something that is no NIfTI volume; {TAKEN}.")
    if is_nifti(start):
        return [nifti_slice(data, limits, slice_number)]
    if slice_number is not None:
        raise Refused(422, "A slice number goes with a NIfTI volume only.")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return [_picture(data, "PNG", limits)]
    if data.startswith(b"\xff\xd8\xff"):
        if data.count(b"\xff\xda") > MOST_PASSES:
            raise Refused(422, f"The JPEG passes over its picture more than {MOST_PASSES} times.")
        return [_picture(data, "JPEG", limits)]
    if data[128:132] == b"DICM":
        return dicom_frames(data, limits)
    raise Refused(415, f"This is {_other_kind(data)}; {TAKEN}.")


def _picture(data: bytes, kind: str, limits: Limits) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:  # reads the header alone
            width, height = image.size
    except Image.DecompressionBombError:
        raise Refused(413, f"The picture is too large: an upload may have {limits.pixels:,} pixels.") from None
    limits.check(height, width)
    try:
        return decode(data, name=kind)
    except DataError as error:
        raise Refused(400, f"The {kind} is broken or cut short.") from error


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
