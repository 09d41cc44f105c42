"""Classes folded into one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from fedplatform.data.error import DataError
from fedplatform.data.source import Source


@dataclass(frozen=True)
class MergedClasses:
    """A source whose class counts as the one that ``into`` gives for it: for a coarser question, or too few patients.

    Classes that ``into`` leaves out stay as they are and come first, then new names in their order in ``into``. Raises
    DataError for a class that the source does not have.
    """

    source: Source
    into: Mapping[str, str]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The new class names, by label."""
        names = self.source.classes
        for name in self.into:
            if name not in names:
                raise DataError(f"no class {name!r} to merge; the classes are {', '.join(names)}")
        kept = [name for name in names if name not in self.into]
        return tuple(dict.fromkeys([*kept, *self.into.values()]))

    @property
    def channels(self) -> int:
        """As stored."""
        return self.source.channels

    def index(self) -> pa.Table:
        """The source's index with the labels renumbered."""
        of_old = [self.classes.index(self.into.get(name, name)) for name in self.source.classes]
        table = self.source.index()
        labels = np.array(of_old, np.int64)[table.column("label").to_numpy()]
        return table.set_column(table.column_names.index("label"), "label", pa.array(labels))

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        """The source's pictures."""
        return self.source.images(size=size, channels=channels)
