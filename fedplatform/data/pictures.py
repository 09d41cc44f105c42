"""Pictures from files, and from pixels to the size and colour that was asked for."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fedplatform.data.brightness import Pixels, sample, stretch, visible_range
from fedplatform.data.error import DataError

BATCH = 128
MODES = {1: "L", 3: "RGB"}
GREY = ("1", "L", "LA", "La")  # what Pillow calls a picture without colour
COPIES = ("GIF", "WEBP", "PNG", "MPO")  # of such a file with several pictures, the first stands for all
BITS, WHITE_IS_ZERO, REDUCED, ORIENTATION = 258, 262, 254, 274  # TIFF's tags; the last is EXIF's as well


def decode(data: bytes, *, name: str) -> Pixels:
    """Decode a PNG, JPEG, BMP, TIFF, ... with one picture to (h, w) or (h, w, 3) uint8; see :func:`decode_pages`."""
    pages = decode_pages(data, name=name)
    if len(pages) != 1:
        raise DataError(f"{name}: holds {len(pages)} pages where one picture is needed")
    return pages[0]


def decode_pages(data: bytes, *, name: str) -> list[Pixels]:
    """Decode all pages of a PNG, JPEG, BMP, TIFF, ... to (h, w) or (h, w, 3) uint8 each.

    Upright, as EXIF says, and transparent pixels blended onto black. Pages deeper than 8 bits share one range, that of
    :func:`visible_range`, because a 12-bit scan in a 16-bit file would be nearly black otherwise. Only a TIFF has
    several pages; reduced copies of others do not count, and of an animation the first picture is taken. Raises
    DataError with ``name`` where the bytes are no whole picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            pages = [_page(image, number, data) for number in page_numbers(image)]
    except Exception as error:  # decoders raise a dozen types on broken bytes: OSError, SyntaxError, struct.error, ...
        raise DataError(f"{name}: not a whole picture ({_first_line(error)})") from error
    deep = [page for page in pages if page.dtype != np.uint8]
    if not all(np.isfinite(page).all() for page in deep if page.dtype.kind == "f"):
        raise DataError(f"{name}: holds pixels that are not finite")
    if not deep:
        return pages
    low, high = visible_range(np.concatenate([sample(page) for page in deep]))
    return [page if page.dtype == np.uint8 else _shown(page, low, high) for page in pages]


def has_colour(data: bytes, *, name: str) -> bool:
    """Whether a picture file is stored in colour, by its header alone. Raises DataError where it is no picture."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.mode not in GREY and not image.mode.startswith(("I", "F"))
    except Exception as error:
        raise DataError(f"{name}: not a whole picture ({_first_line(error)})") from error


def page_numbers(image: Image.Image) -> list[int]:
    """Which pages of an opened file are pictures of their own, from 0; looks at headers alone."""
    count = getattr(image, "n_frames", 1)
    if count == 1 or image.format in COPIES:
        return [0]
    numbers = []
    for number in range(count):
        image.seek(number)
        if not int(_tags(image).get(REDUCED, 0)) & 1:
            numbers.append(number)
    return numbers or [0]


def count_pages(data: bytes) -> int:
    """How many pictures :func:`decode_pages` gives, from the headers alone; 1 where they cannot be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return len(page_numbers(image))
    except Exception:  # whoever decodes it says what is wrong
        return 1


def _page(image: Image.Image, number: int, data: bytes) -> Any:
    """One page as it is stored: uint8, or deeper and not stretched yet; upright and blended."""
    if number or getattr(image, "n_frames", 1) > 1:
        image.seek(number)
    if _is_deep_colour(image, data):
        return _deep_colours(image, number, data)
    inverted = image.format == "TIFF" and image.mode.startswith("I;16") and _tags(image).get(WHITE_IS_ZERO) == 0
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        values = np.array(upright)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            values[values == transparent] = 0
        return 65535 - values if inverted else values
    grey = image.mode in GREY
    if not image.has_transparency_data:
        return np.array(upright.convert("L" if grey else "RGB"))
    layers = np.asarray(upright.convert("LA" if grey else "RGBA"))
    blended = _blended(layers[..., :-1], layers[..., -1:])
    return blended[..., 0] if grey else blended


def _is_deep_colour(image: Image.Image, data: bytes) -> bool:
    """Whether a picture has several channels of 16 bits, of which Pillow keeps the high byte alone."""
    if image.format == "PNG":
        return data[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06")  # bits and colour type of the header
    bits = _tags(image).get(BITS, ()) if image.format == "TIFF" else ()
    return isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8


def _deep_colours(image: Image.Image, number: int, data: bytes) -> Any:
    """Channels of 16 bits as (h, w) or (h, w, 3); three that are equal everywhere are grey."""
    import imagecodecs  # of pictures with 16-bit channels alone

    is_png = image.format == "PNG"
    turn = image.getexif().get(ORIENTATION, 1)
    values = imagecodecs.png_decode(data) if is_png else imagecodecs.tiff_decode(data, index=number)
    if values.ndim != 3 or values.shape[2] > 4 or values.dtype.kind not in "uf":
        raise ValueError(f"channels of shape {values.shape} and type {values.dtype}")
    key = image.info.get("transparency")
    if values.shape[2] in (2, 4):
        values = _blended(values[..., :-1], values[..., -1:])
    elif is_png and isinstance(key, Sequence):
        values[(values == np.array(key)).all(axis=2)] = 0
    if values.shape[2] == 1 or (values == values[..., :1]).all():
        values = values[..., 0]
    return _turned(values, int(turn))


def _turned(values: Any, orientation: int) -> Any:
    """Pixels upright, by the eight orientations of EXIF."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def _blended(colours: Any, alpha: Any) -> Any:
    """Colours (h, w, c) onto black by their alpha (h, w, 1), of the same type; row by row, to spare memory."""
    full = float(np.iinfo(colours.dtype).max) if colours.dtype.kind == "u" else 1.0
    blended = np.empty_like(colours)
    for row in range(len(colours)):
        share = alpha[row] / full
        blended[row] = np.rint(colours[row] * share) if full > 1 else colours[row] * share
    return blended


def _shown(page: Any, low: float, high: float) -> Pixels:
    return stretch(page, low=low if page.ndim == 2 else min(low, 0.0), high=high)


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})


def fit(pixels: Pixels, *, size: int, channels: int) -> Pixels:
    """Resize (h, w) or (h, w, 3) to (channels, size, size): antialiased, the sides stretched to a square."""
    image = Image.fromarray(pixels).convert(MODES[channels])
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    fitted = np.asarray(image)
    return fitted[None] if channels == 1 else fitted.transpose(2, 0, 1)


def batches(pictures: Iterable[Pixels], *, size: int, channels: int) -> Iterator[Pixels]:
    """Fit pictures one by one and yield them as (b, channels, size, size), b <= 128."""
    if channels not in MODES:
        raise DataError(f"pictures have 1 or 3 channels, got channels={channels}")
    if size < 1:
        raise DataError(f"pictures need size >= 1, got size={size}")
    batch: list[Pixels] = []
    for picture in pictures:
        batch.append(fit(picture, size=size, channels=channels))
        if len(batch) == BATCH:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
