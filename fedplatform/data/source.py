"""The one interface of every data set: an index that fits in memory, and pictures that need not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa


@runtime_checkable
class Source(Protocol):
    """A labelled set of scans, read in one fixed order.

    ``classes`` are the class names, by label. ``index()`` is a table with one row a scan: ``label`` int64, or a list of
    0 and 1, one for each class, where a scan has any number of findings; and, where the set has them, ``group`` int64
    (patient, subject, near-identical pictures: never cut by a split), ``fold`` int64 0-9 (group-safe, class-balanced),
    ``site`` string (the scanner or hospital it came from), ``split`` string (the
    published "train", "validation" or "test" that it belongs to), ``modality`` and ``body_part`` string, ``burned_in``
    bool (what the files' headers say), and ``subgroup:NAME`` string. ``images`` yields the same scans in the same order
    as uint8 batches (b, channels, size, size), never more than a few hundred at a time.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour, as stored."""
        ...

    def index(self) -> pa.Table: ...

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]: ...


@runtime_checkable
class Selective(Protocol):
    """A :class:`Source` that can give some of its scans without the work of giving all."""

    def images_at(self, rows: np.ndarray, *, size: int, channels: int) -> Iterator[np.ndarray]:
        """The scans of these rows of the index, (k,) ascending, in batches as ``images`` gives them."""
        ...
