"""The groups that a data set brings, joined where near-identical pictures lie in several of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from fedplatform.data.leakage import find_groups, thumbnails_of
from fedplatform.data.source import Source


@dataclass(frozen=True)
class JoinedGroups:
    """A source whose groups become one where both hold pictures of a class with a cosine of at least ``at_least``.

    For a set whose groups were found by others and are known to cut patients. Folds are left out: they were made for
    the groups as they were. The cosine is of :func:`fedplatform.data.leakage.find_groups`.
    """

    source: Source
    at_least: float

    @property
    def classes(self) -> tuple[str, ...]:
        """The source's."""
        return self.source.classes

    @property
    def channels(self) -> int:
        """As stored."""
        return self.source.channels

    @cached_property
    def _groups(self) -> np.ndarray:
        from scipy.sparse import coo_array  # slow to import
        from scipy.sparse.csgraph import connected_components

        table = self.source.index()
        found = find_groups(thumbnails_of(self.source), table.column("label").to_numpy(), self.at_least)
        given = np.unique(table.column("group").to_numpy(), return_inverse=True)[1]
        # A given group and a found one are joined by every scan that is in both.
        ends = given, found + given.max() + 1
        count = int(ends[1].max()) + 1
        joined = connected_components(coo_array((np.ones(len(given)), ends), shape=(count, count)), directed=False)[1]
        return np.unique(joined[given], return_inverse=True)[1].astype(np.int64)

    def index(self) -> pa.Table:
        """The source's index with the groups joined and without folds."""
        table = self.source.index()
        table = table.set_column(table.column_names.index("group"), "group", pa.array(self._groups))
        return table.drop_columns([name for name in table.column_names if name == "fold"])

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        """The source's pictures."""
        return self.source.images(size=size, channels=channels)
