"""Arrays that lie in a file and not in memory: where a round's updates together are larger than memory holds."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator

import numpy as np

HELD_BYTES = 1 << 30  # what an array may take in memory; a larger one lies in a file
RELEASE_BYTES = 64 << 20  # of a file are looked at before its pages go back to the system


def scratch(rows: int, columns: int, *, at_most: int | None = None) -> np.ndarray:
    """An array (rows, columns) float32 to be filled: in memory, or where it is too large in a file without a name.

    The file lies where TMPDIR says and goes with the array. Raises OSError where the disk is full.
    """
    if rows * columns * 4 <= (HELD_BYTES if at_most is None else at_most):
        return np.empty((rows, columns), np.float32)
    with tempfile.TemporaryFile() as file:
        file.truncate(rows * columns * 4)
        return np.memmap(file, np.float32, "r+", shape=(rows, columns))


def file_of(array: np.ndarray) -> mmap.mmap | None:
    """The file that an array or the one that it is a view of is mapped from; None where it lies in memory."""
    below: object = array
    while below is not None and not isinstance(below, mmap.mmap):
        below = getattr(below, "base", None)
    return below


def releasing(array: np.ndarray, slices: Iterator[slice], *, bytes_of_one: int) -> Iterator[slice]:
    """The same slices; what was read of an array in a file goes out of this process's memory again on the way.

    ``bytes_of_one`` is what one row or column takes. The system keeps the pages as long as it has room, and what was
    written to them reaches the file.
    """
    looked_at = 0
    for part in slices:
        yield part
        looked_at += (part.stop - part.start) * bytes_of_one
        if looked_at >= RELEASE_BYTES:
            release(array)
            looked_at = 0
    release(array)


def release(array: np.ndarray) -> None:
    """Let go of the pages of an array in a file; what was written to them stays in the file."""
    if (file := file_of(array)) is not None:
        file.madvise(mmap.MADV_DONTNEED)
