"""One DICOM file: who it is of, and its pixels as a radiologist's screen would show them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, get_decoder

from fedplatform.data.aspect import square_pixels
from fedplatform.data.brightness import SAMPLE, Pixels, Values, sample, stretch, visible_range
from fedplatform.data.codecs import plugin_for
from fedplatform.data.dicom_display import Display, numbers, pixel_aspect
from fedplatform.data.dicom_file import DicomFile, begins_like_dicom
from fedplatform.data.error import DataError
from fedplatform.data.luma import rgb_of
from fedplatform.data.origin import TAGS, Origin

PHOTOMETRIC = "PhotometricInterpretation"
HEADER = ["PatientID", "InstitutionName", "ManufacturerModelName", "NumberOfFrames", PHOTOMETRIC, *TAGS]


@dataclass(frozen=True)
class DicomHeader:
    """Of a DICOM file: the patient and the place ("" where it names none), how many pictures it holds, and of what."""

    patient: str
    site: str
    frames: int
    origin: Origin
    has_colour: bool = False


def read_dicom_header(path: Path) -> DicomHeader:
    """Read the header without the pixels; the place is the institution, or else the model of the scanner."""
    try:
        with path.open("rb") as file:
            if not begins_like_dicom(file.read(140)):
                raise ValueError("it does not begin like one")
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER), force=True)
        site = str(data.get("InstitutionName") or data.get("ManufacturerModelName") or "")
        has_colour = not str(data.get(PHOTOMETRIC) or "MONOCHROME").startswith("MONOCHROME")
        return DicomHeader(str(data.get("PatientID") or ""), site, frame_count(data), Origin.of(data), has_colour)
    except Exception as error:
        raise DataError(f"{path}: not a DICOM file ({_first_line(error)})") from error


def read_dicom(path: Path) -> list[Pixels]:
    """The frames of a DICOM file as (h, w) or (h, w, 3) uint8, with square pixels where the file tells their form.

    Grey values go through the rescale (or modality table), then through the first window or value-of-interest table,
    of the frame, of all frames or of the file; where there is none, :func:`visible_range` of all frames is shown.
    MONOCHROME1 is inverted, so that white is always the high signal. Raises DataError with the file's name where it is
    broken.
    """
    try:
        data = DicomFile.of(path.read_bytes()).inflated().parsed()
    except Exception as error:
        raise DataError(f"{path}: not a DICOM file with a picture ({_first_line(error)})") from error
    return list(shown_frames(data, name=str(path)))


def shown_frames(data: Dataset, *, name: str) -> Iterator[Pixels]:
    """The frames of a parsed file as :func:`read_dicom` gives them, one at a time; ``name`` stands in the error."""
    try:
        for number, frame in enumerate(displayed_frames(data)):
            yield square_pixels(frame, aspect=pixel_aspect(data, number))
    except Exception as error:  # as many types as there are ways to break a file
        raise DataError(f"{name}: not a readable DICOM picture ({_first_line(error)})") from error


def frame_count(data: Dataset) -> int:
    """How many pictures a file says that it holds."""
    return int((*numbers(data, "NumberOfFrames"), 1.0)[0])


def displayed_frames(data: Dataset) -> Iterator[Pixels]:
    """The frames pixel by pixel as they are stored, whatever the form of a pixel is; raises what is wrong with them."""
    kind, samples = str(data.PhotometricInterpretation), int(data.get("SamplesPerPixel") or 1)
    if samples == 1 and kind not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"):
        raise ValueError(f"photometric interpretation {kind} with one sample a pixel")
    data = _unpacked(data)
    if samples == 3 or kind == "PALETTE COLOR":
        yield from (_colours(frame, data) for frame in _stored(data))
        return
    displays = [Display.of(data, number) for number in range(frame_count(data))]
    automatic = automatic_range(data, displays)
    for display, frame in zip(displays, _stored(data), strict=True):
        yield display.shown(frame, automatic=automatic)


def automatic_range(data: Dataset, displays: Sequence[Display]) -> tuple[float, float]:
    """What is shown from black to white of the grey frames that have no window and no table, in common."""
    if all(display.interest for display in displays):
        return 0.0, 0.0
    # The frames are decoded twice, once for this: all at once they might not fit in memory.
    each = max(SAMPLE // len(displays), 2**10)
    ranged = zip(displays, _stored(data), strict=True)
    parts = [_measured(frame, display, each) for display, frame in ranged if not display.interest]
    measured = np.concatenate(parts)
    return visible_range(measured) if measured.size else (0.0, 0.0)


def _measured(frame: Values, display: Display, at_most: int) -> Any:
    """Some of a frame's values as the modality has them, without what fills it up."""
    stored = sample(frame, at_most=at_most)
    return display.signal(stored[~display.is_padding(stored)])


def _colours(frame: Values, data: Dataset) -> Pixels:
    if frame.ndim == 2:
        frame = apply_color_lut(frame, data)
        if frame.dtype != np.uint8:  # entries of 16 bits, of which many files use the low byte alone
            return stretch(frame, low=0.0, high=65535.0 if frame.max() > 255 else 255.0)
    if frame.dtype == np.uint8:
        return frame
    return stretch(frame, low=0.0, high=visible_range(sample(frame))[1])


def _stored(data: Dataset) -> Iterator[Values]:
    """The frames as they are stored, (h, w) or (h, w, 3) RGB, one at a time and as many as the file says."""
    syntax = data.file_meta.TransferSyntaxUID
    count = frame_count(data)
    allocated, stored = int(data.BitsAllocated), int(data.get("BitsStored") or data.BitsAllocated)
    high = int((stored if data.get("HighBit") is None else data.HighBit + 1) or stored) - 1
    is_shifted = high + 1 > stored and not syntax.is_encapsulated and high < allocated
    options: dict[str, Any] = {"correct_unused_bits": False} if is_shifted else {}
    frames = get_decoder(syntax).iter_array(data, raw=True, decoding_plugin=plugin_for(syntax), **options)
    given = 0
    for frame, told in islice(frames, count):
        given += 1
        if frame.ndim == 3 and str(told["photometric_interpretation"]) in ("YBR_FULL", "YBR_FULL_422"):
            frame = rgb_of(frame)
        yield (frame << (allocated - 1 - high)) >> (allocated - stored) if is_shifted else frame
    if given < count:
        raise ValueError(f"holds {given} of {count} frames")


def _unpacked(data: Dataset) -> Dataset:
    """The same file with 16 bits a sample where it has 12, two samples in three bytes (PS3.5, annex D)."""
    if data.get("BitsAllocated") != 12 or data.file_meta.TransferSyntaxUID.is_encapsulated:
        return data
    count = data.Rows * data.Columns * int(data.get("SamplesPerPixel") or 1) * frame_count(data)
    packed = np.frombuffer(data.PixelData, np.uint8)[: (3 * count + 1) // 2]
    if len(packed) < (3 * count + 1) // 2:
        raise ValueError("the pixels are cut short")
    triples = np.append(packed, np.zeros(-len(packed) % 3, np.uint8)).reshape(-1, 3).astype(np.uint16)
    values = np.stack([triples[:, 0] | (triples[:, 1] & 15) << 8, triples[:, 1] >> 4 | triples[:, 2] << 4], axis=1)
    wide = copy.copy(data)
    wide.PixelData = values.reshape(-1)[:count].astype("<u2").tobytes()
    wide.BitsAllocated = 16
    return wide


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
