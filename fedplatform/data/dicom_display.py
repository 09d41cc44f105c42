"""From the stored values of a DICOM frame to what a screen shows: PS3.3, C.7.6.16.2 and C.11."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from fedplatform.data.brightness import Pixels, Values, by_value, stretch

Signal = npt.NDArray[np.float64]
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")


@dataclass(frozen=True)
class Window:
    """A window of values of interest and its function, C.11.2.1.2 and C.11.2.1.3."""

    center: float
    width: float
    function: str

    def shown(self, signal: Signal) -> Pixels:
        """Black below the window, white above it."""
        center, width = self.center, self.width
        if self.function == "SIGMOID":
            exponent = np.clip(-4 * (signal - center) / width, -60, 60)
            return stretch(1 / (1 + np.exp(exponent)), low=0.0, high=1.0)
        if self.function == "LINEAR_EXACT":
            return stretch(signal, low=center - width / 2, high=center + width / 2)
        # Width 1 is a threshold; the smallest positive range makes it one here too.
        span = max(width - 1, 1e-6)
        return stretch(signal, low=center - 0.5 - span / 2, high=center - 0.5 + span / 2)


@dataclass(frozen=True, eq=False)
class Table:
    """A table of values, C.11.1.1: ``entries`` (k,) for the values from ``first`` on, at its ends for those beyond."""

    first: int
    entries: npt.NDArray[np.uint16]
    bits: int

    @classmethod
    def of(cls, item: Dataset, *, signed: bool, little: bool) -> Table:
        """Read an item of a sequence of tables; ``signed`` tells whether values below 0 are looked up."""
        count, first, bits = (int(value) for value in item.LUTDescriptor)
        count = count or 65536
        first = first - 65536 if signed and first > 32767 else first
        data = item.LUTData
        if isinstance(data, bytes):
            is_bytes = bits <= 8 and len(data) < 2 * count
            entries = np.frombuffer(data, np.uint8 if is_bytes else "<u2" if little else ">u2")
        else:
            words = np.array(data, np.int64).reshape(-1).astype(np.uint16)
            entries = words.view(np.uint8) if bits <= 8 and len(words) < count else words  # two entries in a word
        if len(entries) < count:
            raise ValueError(f"a table of {count} values holds {len(entries)}")
        entries = entries[:count].astype(np.uint16)
        # Descriptors that say 8 or 12 and hold more are common.
        return cls(first, entries, max(bits, int(entries.max()).bit_length()))

    def look_up(self, signal: Signal) -> Signal:
        """What stands in the table for each value."""
        places = np.clip(np.rint(signal) - self.first, 0, len(self.entries) - 1)
        return np.asarray(self.entries[places.astype(np.intp)], np.float64)

    def shown(self, signal: Signal) -> Pixels:
        """The table's values from 0 to the highest of its bits as black to white, C.11.2.1.1."""
        return stretch(self.look_up(signal), low=0.0, high=2.0**self.bits - 1)


@dataclass(frozen=True, eq=False)
class Display:
    """How one grey frame is shown: modality transformation, then values of interest, then polarity."""

    modality: Table | None
    slope: float
    intercept: float
    interest: Window | Table | None
    padding: tuple[float, float] | None
    is_inverted: bool

    @classmethod
    def of(cls, data: Dataset, frame: int) -> Display:
        """Read a frame's own settings, then those that all frames share, then those of the file.

        Zero-length values count as absent and decimal commas as points; what is no number raises ValueError.
        """
        signed, little = bool(data.get("PixelRepresentation")), bool(data.original_encoding[1] is not False)
        modality = None
        slope, intercept = 1.0, 0.0
        for place in places(data, frame, "PixelValueTransformationSequence"):
            if place.get("ModalityLUTSequence"):
                modality = Table.of(place.ModalityLUTSequence[0], signed=signed, little=little)
                break
            found = numbers(place, "RescaleSlope"), numbers(place, "RescaleIntercept")
            if any(found):
                slope, intercept = (*found[0], 1.0)[0], (*found[1], 0.0)[0]
                break
        signed = modality is None and (signed or intercept < 0)
        return cls(
            modality,
            slope,
            intercept,
            _interest(data, frame, signed=signed, little=little),
            _padding(data),
            data.PhotometricInterpretation == "MONOCHROME1",
        )

    def signal(self, stored: Values) -> Signal:
        """Stored values as those of the modality, in Hounsfield units for example."""
        if self.modality is not None:
            return self.modality.look_up(stored.astype(np.float64))
        return stored.astype(np.float64) * self.slope + self.intercept

    def is_padding(self, stored: Values) -> npt.NDArray[np.bool_]:
        """Where a frame was filled up because nothing was measured there."""
        low, high = self.padding or (math.inf, -math.inf)
        return np.asarray((stored >= low) & (stored <= high))

    def shown(self, stored: Values, *, automatic: tuple[float, float]) -> Pixels:
        """A frame (h, w) as 0-255, white for the high signal; ``automatic`` is the range where the file has none."""
        if stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2 and stored.size > 2**16:
            return by_value(stored, lambda every: self._shown(every, automatic))
        return self._shown(stored, automatic)

    def _shown(self, stored: Values, automatic: tuple[float, float]) -> Pixels:
        low, high = automatic
        signal = np.nan_to_num(self.signal(stored), nan=low, posinf=high, neginf=low)
        shown = self.interest.shown(signal) if self.interest else stretch(signal, low=low, high=high)
        if self.is_inverted:
            shown = np.asarray(255 - shown, np.uint8)
        shown[self.is_padding(stored)] = 0
        return shown


def places(data: Dataset, frame: int, group: str) -> Iterator[Dataset]:
    """Where a functional group's attributes may stand: in the frame's item, in the shared one, in the file itself."""
    for sequence, number in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = data.get(sequence) or ()
        found = items[number].get(group) if number < len(items) else None
        if found:
            yield found[0]
    yield data


def pixel_aspect(data: Dataset, frame: int) -> float:
    """How many times as high as wide a pixel is; 1 where the file does not say."""
    for place in places(data, frame, "PixelMeasuresSequence"):
        for name in SPACINGS:
            spacing = numbers(place, name)
            if len(spacing) == 2 and min(spacing) > 0:
                return spacing[0] / spacing[1]
    return 1.0


def numbers(item: Dataset, keyword: str) -> tuple[float, ...]:
    """The numbers of an element that is written as text; none where it is missing or of zero length.

    They are read here, because pydicom stops at a decimal comma. Raises ValueError for what is no finite number.
    """
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in item:
        return ()
    value: Any = item.get_item(tag).value
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    parts = value.split("\\") if isinstance(value, str) else np.atleast_1d([] if value is None else value).tolist()
    texts = [str(part).strip(" \0").replace(",", ".") for part in parts]
    try:
        found = tuple(float(text) for text in texts if text)
    except ValueError:
        raise ValueError(f"{keyword} is no number") from None
    if not all(math.isfinite(number) for number in found):
        raise ValueError(f"{keyword} is no finite number")
    return found


def _interest(data: Dataset, frame: int, *, signed: bool, little: bool) -> Window | Table | None:
    """The first window of a place, or its first table."""
    for place in places(data, frame, "FrameVOILUTSequence"):
        center, width = numbers(place, "WindowCenter"), numbers(place, "WindowWidth")
        function = str(place.get("VOILUTFunction") or "LINEAR")
        if center and width and (function != "LINEAR" or width[0] >= 1):
            if width[0] <= 0:
                raise ValueError("WindowWidth is not positive")
            return Window(center[0], width[0], function)
        if place.get("VOILUTSequence"):
            return Table.of(place.VOILUTSequence[0], signed=signed, little=little)
    return None


def _padding(data: Dataset) -> tuple[float, float] | None:
    """The stored values that are no measurement, from the lowest to the highest, C.7.5.1.1.2."""
    bits, signed = int(data.get("BitsAllocated") or 16), bool(data.get("PixelRepresentation"))
    found = [_stored_value(data.get(name), bits, signed) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    value, limit = found
    if value is None:
        return None
    return min(value, limit if limit is not None else value), max(value, limit if limit is not None else value)


def _stored_value(value: Any, bits: int, signed: bool) -> int | None:
    """A value as it stands among the pixels; files write it as US, SS or in an unknown representation."""
    if value is None or value in ("", b""):
        return None
    number = int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)
    if signed and number >= 1 << (bits - 1):
        return number - (1 << bits)
    return number + (1 << bits) if not signed and number < 0 else number
