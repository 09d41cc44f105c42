"""Which subgroup a scan's patient is in (sex, age band, scanner): a word a scan, in columns that a user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fedplatform.core.messages import SUBGROUP, UNKNOWN
from fedplatform.data.error import DataError

Subgroups = Mapping[str, npt.NDArray[np.str_]]  # by name, each (n,)
BAND = 20  # years of an age band, or so many units of any other number
FEW = 10  # whole numbers below it, and nothing else, are codes and no quantity, and are left as they are
MOST = 50  # different words in a column


def column_of(values: Any, *, name: str) -> pa.Array:
    """A column as words: numbers in bands of :data:`BAND`, ``40–59``; what is empty is :data:`UNKNOWN`.

    A column of whole numbers below :data:`FEW` holds codes, such as 0 and 1 for sex, and keeps them.

    Raises DataError where there are too many different words to be subgroups.
    """
    given = values.to_pylist()
    codes = _are_codes(given)
    words = [_word(value, code=codes) for value in given]
    if len(set(words)) > MOST:
        raise DataError(f"column {name!r} has {len(set(words))} different values; subgroups are at most {MOST}")
    return pa.array(words, pa.string())


def _are_codes(values: Sequence[Any]) -> bool:
    numbers = {value for value in values if isinstance(value, int | float) and value == value}
    return all(value == int(value) and 0 <= value < FEW for value in numbers)


def _word(value: object, *, code: bool) -> str:
    if value is None or value != value or value == "":
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and code:
        return str(int(value))
    if isinstance(value, int | float):
        low = int(value // BAND) * BAND
        return f"{low}–{low + BAND - 1}"
    return str(value)


def columns(subgroups: Subgroups) -> dict[str, pa.Array]:
    """Subgroups as columns of a table."""
    return {f"{SUBGROUP}{name}": pa.array(words.tolist(), pa.string()) for name, words in subgroups.items()}


def subgroups_in(table: pa.Table) -> dict[str, npt.NDArray[np.str_]]:
    """The subgroups in the columns of a table."""
    found = [name for name in table.column_names if name.startswith(SUBGROUP)]
    return {name.removeprefix(SUBGROUP): np.asarray(table.column(name).to_pylist(), np.str_) for name in found}


def checked(subgroups: Mapping[str, Sequence[object]], *, scans: int) -> dict[str, npt.NDArray[np.str_]]:
    """Subgroups of scans in memory, as words. Raises DataError where one has not a value for each scan."""
    found = {}
    for name, values in subgroups.items():
        if len(values) != scans:
            raise DataError(f"subgroup {name!r} is one value a scan ({scans}), got {len(values)}")
        found[name] = np.asarray(column_of(pa.array(list(values)), name=name).to_pylist(), np.str_)
    return found
