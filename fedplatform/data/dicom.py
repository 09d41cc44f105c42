"""One DICOM file: who it is of, and its pixels as a radiologist's screen would show them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

from fedplatform.data.error import DataError
from fedplatform.data.pictures import Pixels, stretch

HEADER = ["PatientID", "InstitutionName", "ManufacturerModelName", "NumberOfFrames"]


@dataclass(frozen=True)
class DicomHeader:
    """Of a DICOM file: the patient and the place ("" where it names none), and how many pictures it holds."""

    patient: str
    site: str
    frames: int


def read_dicom_header(path: Path) -> DicomHeader:
    """Read the header without the pixels; the place is the institution, or else the model of the scanner."""
    data = _read(path, pixels=False)
    site = str(data.get("InstitutionName") or data.get("ManufacturerModelName") or "")
    return DicomHeader(str(data.get("PatientID") or ""), site, int(data.get("NumberOfFrames") or 1))


def read_dicom(path: Path) -> list[Pixels]:
    """The frames of a DICOM file as (h, w) or (h, w, 3) uint8.

    Grey values go through the rescale (or modality table), then through the first window or value-of-interest table;
    where there is neither, the file's own range is shown. MONOCHROME1 is inverted, so that white is always the high
    signal. Raises DataError with the file's name where it is broken.
    """
    return shown_frames(_read(path, pixels=True), name=str(path))


def shown_frames(data: Any, *, name: str) -> list[Pixels]:
    """The frames of a pydicom data set as :func:`read_dicom` gives them; ``name`` stands in the error."""
    try:
        values = data.pixel_array
        colour = int(data.get("SamplesPerPixel") or 1) == 3
        shown = _colour(values) if colour else _grey(values, data)
    except Exception as error:  # as many types as there are ways to break a file or to lack a codec
        raise DataError(f"{name}: not a readable DICOM picture ({str(error).splitlines()[0]})") from error
    several = int(data.get("NumberOfFrames") or 1) > 1
    return list(shown) if several else [shown]


def _read(path: Path, *, pixels: bool) -> Any:
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=None if pixels else HEADER)
    except Exception as error:
        raise DataError(f"{path}: not a DICOM file ({str(error).splitlines()[0]})") from error


def _colour(values: np.ndarray) -> Pixels:
    if values.dtype == np.uint8:
        return values
    return stretch(values.astype(np.float64), low=0.0, high=float(values.max()))


def _grey(values: np.ndarray, data: Any) -> Pixels:
    kind = data.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        return _colour(apply_color_lut(values, data))
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"photometric interpretation {kind} with one sample a pixel")
    signal = np.asarray(apply_modality_lut(values, data), np.float64)
    if "WindowCenter" in data and "WindowWidth" in data:
        shown = _windowed(signal, data)
    else:
        signal = np.asarray(apply_voi_lut(values, data), np.float64) if "VOILUTSequence" in data else signal
        shown = stretch(signal, low=float(signal.min()), high=float(signal.max()))
    return np.asarray(255 - shown, np.uint8) if kind == "MONOCHROME1" else shown


def _windowed(signal: np.ndarray, data: Any) -> Pixels:
    """The three window functions of DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3."""
    center, width = (float(np.atleast_1d(data[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
    match str(data.get("VOILUTFunction") or "LINEAR"):
        case "SIGMOID":
            exponent = np.clip(-4 * (signal - center) / width, -60, 60)
            return stretch(1 / (1 + np.exp(exponent)), low=0.0, high=1.0)
        case "LINEAR_EXACT":
            return stretch(signal, low=center - width / 2, high=center + width / 2)
        case _:
            # Width 1 is a threshold; the smallest positive range makes it one here too.
            span = max(width - 1, 1e-6)
            return stretch(signal, low=center - 0.5 - span / 2, high=center - 0.5 + span / 2)
