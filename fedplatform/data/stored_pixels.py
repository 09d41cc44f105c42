"""Pictures that stay on the disk: only the rows that are asked for come into memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedplatform.data.brightness import Pixels
from fedplatform.data.error import DataError


class StoredPixels:
    """Uint8 pictures (n, channels, size, size), of which ``stored[rows]`` and ``stored[start:stop]`` are read anew.

    They lie uncompressed in a file without a name, which goes with the object or its process. Pages that the system
    keeps of that file are its own to drop, so a hospital's memory does not grow with its scans.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, parts: Iterable[Any], shape: tuple[int, int, int, int], *, folder: Path) -> None:
        """``parts`` are the pictures' bytes in order; the file lies in ``folder`` where that can be written.

        Raises :class:`DataError` where the disk is full, or the bytes are not as many as the shape says.
        """
        self.shape = shape
        self._width = int(np.prod(shape[1:]))
        place = folder if os.access(folder, os.W_OK) else None
        self._file, name = tempfile.mkstemp(dir=place)
        Path(name).unlink()
        weakref.finalize(self, os.close, self._file)
        written = 0
        try:
            for part in parts:
                written += os.write(self._file, part)
        except OSError as error:
            where = place or tempfile.gettempdir()
            raise DataError(f"{where}: no room for scans that memory does not hold ({error.strerror})") from error
        if written != shape[0] * self._width:
            raise DataError(f"{shape[0]} pictures take {shape[0] * self._width} bytes, got {written}")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> Pixels:
        """The pictures of these rows, (m, channels, size, size)."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._read(start, max(stop - start, 0))
            rows = np.arange(start, stop, step)
        wanted = np.arange(len(self))[rows]  # so that masks, negative rows and rows out of range are as for an array
        found = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        for place, row in enumerate(wanted):
            found[place] = self._read(int(row), 1)[0]
        return found

    def __iter__(self) -> Iterator[Pixels]:
        return (self._read(row, 1)[0] for row in range(len(self)))

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        """All of them, in memory."""
        del dtype, copy  # NumPy's own converts what it gets
        return self._read(0, len(self))

    def _read(self, start: int, count: int) -> Pixels:
        found = np.empty((count, *self.shape[1:]), np.uint8)
        view, at = found.reshape(-1).data, start * self._width
        while len(view):  # a single call reads at most 2 GiB
            read = os.preadv(self._file, [view[: 1 << 30]], at)
            if not read:
                raise DataError("scans that memory does not hold were cut short on the disk")
            view, at = view[read:], at + read
        return found
