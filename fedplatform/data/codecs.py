"""Compressed frames of DICOM files, decoded by the libraries that imagecodecs brings.

A plugin of pydicom, which takes care of all else: how frames are cut out of fragments, planes and signs.
libjpeg-turbo reads JPEG of 8 and 12 bits and lossless, CharLS reads JPEG-LS, OpenJPEG reads JPEG 2000, high-throughput
frames and JP2 boxes among them. RLE is read here, too, because pydicom takes half a minute for what takes a second.
"""

from __future__ import annotations

from functools import cache

import imagecodecs
import numpy as np
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

NAME = "fedplatform"
JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
JPEG_LS = (JPEGLSLossless, JPEGLSNearLossless)
JPEG_2000 = (JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
BOXES = b"\x00\x00\x00\x0cjP  "  # how a JP2 file begins
ALL = (*JPEG, *JPEG_LS, *JPEG_2000, RLELossless)
DECODER_DEPENDENCIES = dict.fromkeys(ALL, ("imagecodecs",))  # pydicom asks for it


def is_available(uid: str) -> bool:
    """Whether a transfer syntax is decoded here; pydicom asks."""
    return uid in DECODER_DEPENDENCIES


@cache
def plugin_for(syntax: UID) -> str:
    """What pydicom is to decode frames of a syntax with: this plugin, registered at the first call, or "" (its own)."""
    if not is_available(syntax):
        return ""
    decoder = get_decoder(syntax)
    if NAME not in decoder.available_plugins:
        decoder.add_plugin(NAME, (__name__, "decode_frame"))
    return NAME


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytearray:
    """One frame as pydicom wants it: little-endian samples, colours pixel by pixel; raises what decoders raise."""
    syntax = runner.transfer_syntax
    if syntax in JPEG:
        values = _jpeg(_whole(frame), runner)
    elif syntax in JPEG_LS:
        values = imagecodecs.jpegls_decode(_whole(frame))
    elif syntax == RLELossless:
        values = _run_lengths(frame, runner)
    else:
        values = imagecodecs.jpeg2k_decode(frame)
    colours = runner.samples_per_pixel
    if values.shape != (runner.rows, runner.columns) + ((colours,) if colours > 1 else ()):
        raise ValueError(f"a frame of shape {values.shape}")
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 * values.dtype.itemsize)
    if syntax in JPEG_2000 and colours == 3 and runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
        runner.set_option("photometric_interpretation", "RGB")  # the codec has turned it back
    return bytearray(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())


def run_length_planes(frame: bytes, pixels: int) -> list[bytes]:
    """The segments of an RLE frame (PS3.5, annex G): a plane for each byte of each sample, of ``pixels`` bytes.

    Raises ValueError where the frame's heading cannot be true or a segment is too short, OverflowError where a segment
    runs on past the picture by more than the byte that fills it up.
    """
    count = int.from_bytes(frame[:4], "little")
    if len(frame) < 64 or not 1 <= count <= 15:
        raise ValueError("the RLE frame has no heading")
    starts = [int.from_bytes(frame[4 * number : 4 * number + 4], "little") for number in range(1, count + 1)]
    planes = []
    for start, end in zip(starts, [*starts[1:], len(frame)], strict=True):
        plane = _run_lengths_of(frame[start:end], pixels + 1)
        if len(plane) < pixels:
            raise ValueError("an RLE segment is too short")
        planes.append(plane[:pixels])
    return planes


def _run_lengths_of(segment: bytes, most: int) -> bytes:
    try:
        return bytes(imagecodecs.packbits_decode(segment, out=most))
    except RuntimeError as error:
        if "TOO_SMALL" in str(error):
            raise OverflowError("an RLE segment is too long") from None
        if segment[-1:] != b"\x00":
            raise ValueError("an RLE segment is cut short") from None
    return bytes(imagecodecs.packbits_decode(segment[:-1], out=most))  # a zero fills it up to an even length


def _run_lengths(frame: bytes, runner: DecodeRunner) -> np.ndarray:
    """An RLE frame; the highest byte of a sample comes first."""
    rows, columns, colours = runner.rows, runner.columns, runner.samples_per_pixel
    planes = [np.frombuffer(plane, np.uint8) for plane in run_length_planes(frame, rows * columns)]
    size = runner.bits_allocated // 8
    if size not in (1, 2, 4) or len(planes) != size * colours:
        raise ValueError(f"{len(planes)} RLE segments for {colours} samples of {runner.bits_allocated} bits")
    samples = [np.stack(planes[first : first + size], axis=-1) for first in range(0, len(planes), size)]
    values = [sample.view(f">u{size}").reshape(rows, columns) for sample in samples]
    return values[0] if colours == 1 else np.stack(values, axis=-1)


def _whole(frame: bytes) -> bytes:
    """A JPEG or JPEG-LS frame up to the marker of its end: without one it was cut short.

    libjpeg would fill up the rest with grey, and CharLS 2.4 looks for the end of a run for many seconds.
    """
    end = frame.rfind(b"\xff\xd9")
    if end < frame.find(b"\xff\xda"):
        raise ValueError("the frame is cut short")
    return frame[: end + 2]


def _jpeg(frame: bytes, runner: DecodeRunner) -> np.ndarray:
    """A JPEG frame, its colours as they are stored: to say that they are RGB is to have nothing done to them."""
    if runner.samples_per_pixel == 1:
        return np.asarray(imagecodecs.jpeg8_decode(frame))
    return np.asarray(imagecodecs.jpeg8_decode(frame, colorspace="RGB", outcolorspace="RGB"))
