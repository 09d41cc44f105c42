"""A site's own classes in the federation's order, by their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fedplatform.data.source import Source


@dataclass(frozen=True)
class NamedClasses:
    """A source numbered by ``classes``, which hold all names of its own: a site may have scans of some of them only."""

    source: Source
    classes: tuple[str, ...]

    @property
    def channels(self) -> int:
        """As stored."""
        return self.source.channels

    def index(self) -> pa.Table:
        """The source's index with the labels renumbered."""
        numbers = np.array([self.classes.index(name) for name in self.source.classes], np.int64)
        table = self.source.index()
        labels = numbers[table.column("label").to_numpy()]
        return table.set_column(table.column_names.index("label"), "label", pa.array(labels))

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        """The source's pictures."""
        return self.source.images(size=size, channels=channels)
