"""All files of a data set that cannot be read, so that nobody has to mend them one at a time."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from fedplatform.data.error import DataError
from fedplatform.data.source import Source


@runtime_checkable
class ListsFaults(Protocol):
    """A source that can go on behind a broken file."""

    def faults(self) -> list[str]:
        """What is wrong with each file that cannot be read, in one line each."""
        ...


def faults_of(source: Source) -> list[str]:
    """What is wrong with each file of a source; empty where none is, or where the source cannot tell them apart."""
    if not isinstance(source, ListsFaults):
        return []
    try:
        return source.faults()
    except DataError:  # something about the whole, which whoever reads it is told anyway
        return []
