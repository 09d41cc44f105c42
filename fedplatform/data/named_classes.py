"""A site's own classes in the federation's order, by their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fedplatform.data.error import DataError
from fedplatform.data.index import holds_lists
from fedplatform.data.source import Source


@dataclass(frozen=True)
class NamedClasses:
    """A source numbered by ``classes``, which hold all names of its own: a site may have scans of some of them only.

    Where a scan has any number of findings the source says of each of them whether the scan has it: what it says
    nothing about is unknown, and not absent. Raises DataError where it lacks one.
    """

    source: Source
    classes: tuple[str, ...]

    @property
    def channels(self) -> int:
        """As stored."""
        return self.source.channels

    def index(self) -> pa.Table:
        """The source's index with the labels renumbered."""
        table = self.source.index()
        place, column = table.column_names.index("label"), table.column("label")
        if holds_lists(column.type):
            if missing := [name for name in self.classes if name not in self.source.classes]:
                raise DataError(
                    f"these data do not say which scans have {', '.join(missing)}; a column of 0 and 1 does"
                )
            order = [self.source.classes.index(name) for name in self.classes]
            rows = [[row[number] for number in order] for row in column.to_pylist()]
            return table.set_column(place, "label", pa.array(rows, pa.list_(pa.int64())))
        numbers = np.array([self.classes.index(name) for name in self.source.classes], np.int64)
        return table.set_column(place, "label", pa.array(numbers[column.to_numpy()]))

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        """The source's pictures."""
        return self.source.images(size=size, channels=channels)
