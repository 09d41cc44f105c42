"""Which range of a scan's values is shown from black to white where the file does not say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[Any]

# A few values (hot pixels, vessels, metal) are far brighter than all tissue; without the cut it would be nearly black.
CUT = 0.005
SAMPLE = 2**22  # values; more of them cost memory and change nothing


def stretch(values: Values, *, low: float, high: float) -> Pixels:
    """Map values from [low, high] to 0-255 and cut off what lies outside; a flat range gives black."""
    if values.dtype.kind in "iu" and values.dtype.itemsize == 2 and values.size > 2**16:
        # Many pixels of few values: 65,536 are worked out once, instead of a float64 for every pixel.
        return by_value(values, lambda every: stretch(every, low=low, high=high))
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    wide = values.astype(np.float64)
    return np.asarray(np.rint((np.clip(wide, low, high) - low) * (255.0 / (high - low))), np.uint8)


def by_value(values: Values, shown: Callable[[Values], Pixels]) -> Pixels:
    """``shown`` of integers of 8 or 16 bits, worked out once for each value that there can be."""
    native = values.dtype.newbyteorder("=")
    bits = np.dtype(f"u{native.itemsize}")
    every = np.arange(256**native.itemsize, dtype=bits).view(native)
    return np.asarray(shown(every)[values.astype(native, copy=False).view(bits)])


def sample(values: Values, *, at_most: int = SAMPLE) -> npt.NDArray[np.float64]:
    """Every n-th finite value, (k,) with k <= ``at_most``: all of them where there are no more."""
    flat = values.reshape(-1) if values.flags.c_contiguous else values.ravel(order="K")
    taken = flat[:: -(-flat.size // at_most)].astype(np.float64) if flat.size else np.empty(0)
    return np.asarray(taken[np.isfinite(taken)])


def visible_range(sampled: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The range that shows all tissue: of the values (k,), without one in 200 at either end.

    The background, which is the commonest value, does not count, or tissue that fills less than one voxel in 200 would
    be cut off as if it were a flaw. It keeps its place in the range: darkest where it is darker than the tissue.
    """
    ordered = np.sort(sampled)
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(np.append(starts, ordered.size))
    commonest = int(np.argmax(counts))
    begin = int(starts[commonest])
    without = np.concatenate([ordered[:begin], ordered[begin + int(counts[commonest]) :]])
    ends = [_ends(part) for part in (ordered, without) if part.size]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _ends(ordered: npt.NDArray[np.float64]) -> tuple[float, float]:
    cut = int(CUT * (ordered.size - 1))
    return float(ordered[cut]), float(ordered[-1 - cut])
