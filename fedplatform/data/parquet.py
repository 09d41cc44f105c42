"""Scans in one Parquet file, in the form of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fedplatform.core.messages import SUBGROUP
from fedplatform.data.brightness import Pixels
from fedplatform.data.error import DataError
from fedplatform.data.index import Integers, holds_lists, list_column
from fedplatform.data.patients import COLUMNS, GIVEN, NOBODY
from fedplatform.data.pictures import batches, decode
from fedplatform.data.subgroups import column_of

# Read through a small buffer: a row group may be larger than all that is wanted in memory.
BUFFER_BYTES = 1 << 20
FINDING = "label_"  # begins the name of a column that says 0 or 1 of one finding
SPLIT_NAMES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class ParquetSource:
    """Scans in a Parquet file: ``image`` (encoded bytes, or a struct with ``bytes``) and ``label`` (number or word).

    A scan with any number of findings has a list of 0 and 1 as its ``label``, one for each finding, or, without that
    column, one column of 0 and 1 for each, ``label_NAME``.

    Optional columns: the patient (number or word) in ``group``, ``patient``, ``subject_id`` or another of
    :data:`~fedplatform.data.patients.COLUMNS`, or in the column that ``patients`` names (``none``: in none);
    ``fold``, ``site``, and ``split`` or ``orig_split`` ("train", "val", "test"). Class names come from the schema
    metadata key ``classes`` (comma-separated), from the hub's own metadata, from the words in ``label``, or are the
    numbers that occur, in this order. ``subgroups`` names columns by which figures are split; numbers in them are
    taken in bands. Pictures are streamed, never held whole.
    """

    path: Path
    patients: str = GIVEN
    subgroups: tuple[str, ...] = ()

    @property
    def patient_column(self) -> str | None:
        """The column that says which patient a scan is of; None where there is none."""
        names = self._schema.names
        if self.patients == GIVEN:
            known = {name.lower(): name for name in reversed(names)}
            return next((known[name] for name in COLUMNS if name in known), None)
        if self.patients == NOBODY:
            return None
        if self.patients not in names:
            raise DataError(f"{self.path}: patients names a column, got {self.patients!r}; it has {', '.join(names)}")
        return self.patients

    @cached_property
    def _schema(self) -> Any:
        try:
            schema = pq.read_schema(self.path)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: not a Parquet file ({str(error).splitlines()[0]})") from error
        findings = _finding_columns(schema.names)
        for name in ("image", *(() if findings else ("label",))):
            if name not in schema.names:
                raise DataError(f"{self.path}: needs a column {name!r}, got {', '.join(schema.names)}")
        for name in findings:
            if not _says_yes_or_no(kind := schema.field(name).type):
                raise DataError(f"{self.path}: column {name!r} must hold 0 or 1, got {kind}")
        kind = None if findings else schema.field("label").type
        if kind is not None and not (_holds_words(kind) or pa.types.is_integer(kind) or holds_lists(kind)):
            raise DataError(
                f"{self.path}: column 'label' must hold whole numbers, words, or lists of 0 and 1, got {kind}"
            )
        return schema

    @property
    def _findings(self) -> tuple[str, ...]:
        """The columns that say 0 or 1 of one finding each, in the order of the file."""
        return _finding_columns(self._schema.names)

    @property
    def _is_listed(self) -> bool:
        """Whether the label of a scan is a list."""
        return not self._findings and holds_lists(self._schema.field("label").type)

    def _read(self, name: str) -> Any:
        return pq.read_table(self.path, columns=[name]).column(0).combine_chunks()

    @cached_property
    def _words(self) -> tuple[str, ...] | None:
        """The classes of a label column that holds words, in alphabetical order."""
        if self._findings or not _holds_words(self._schema.field("label").type):
            return None
        return tuple(sorted(word for word in self._read("label").unique().to_pylist() if word is not None))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The class names, by label."""
        if self._findings:
            return tuple(name.removeprefix(FINDING) for name in self._findings)
        if self._words is not None:
            return self._words
        if self._names is not None:
            return self._names
        if self._is_listed:
            lengths = pc.list_value_length(self._read("label"))
            return tuple(map(str, range(pc.max(lengths).as_py() or 0)))
        return tuple(map(str, self._codes))

    @property
    def _names(self) -> tuple[str, ...] | None:
        """The class names that the file's metadata gives, by label."""
        metadata = self._schema.metadata or {}
        if b"classes" in metadata:
            return tuple(metadata[b"classes"].decode().split(","))
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        told = features.get("label", {})
        # Of a list, the hub says what stands in each of its places, in one of two ways.
        told = told[0] if isinstance(told, list) else told.get("feature") or told
        return tuple(told.get("names") or ()) or None

    @cached_property
    def _codes(self) -> tuple[int, ...]:
        """The numbers that occur as labels, in ascending order."""
        return tuple(sorted(code for code in self._read("label").unique().to_pylist() if code is not None))

    @cached_property
    def channels(self) -> int:
        """1 or 3, by the first picture."""
        return 3 if next(self._pictures()).ndim == 3 else 1

    def index(self) -> pa.Table:
        """One row a scan: ``label`` and whatever of ``group``, ``fold``, ``site`` and ``split`` the file has."""
        names = self._schema.names
        columns = {"label": self._matrix() if self._findings else self._numbered()}
        if self.patient_column is not None:
            group = self._read(self.patient_column)
            if not pa.types.is_integer(group.type):
                encoded = group.cast(pa.string()).dictionary_encode()
                group = encoded.indices.cast(pa.int64())
            columns["group"] = group
        columns |= {name: self._read(name) for name in ("fold", "site") if name in names}
        published = next((name for name in ("split", "orig_split") if name in names), None)
        if published is not None:
            found = self._read(published).to_pylist()
            unknown = {str(name) for name in found if name not in SPLIT_NAMES}
            if unknown:
                raise DataError(
                    f"{self.path}: column {published!r} knows {', '.join(SPLIT_NAMES)}, "
                    f"got {', '.join(sorted(unknown))}"
                )
            columns["split"] = pa.array([SPLIT_NAMES[name] for name in found], pa.string())
        for name in self.subgroups:
            if name not in names:
                raise DataError(f"{self.path}: subgroups names columns, got {name!r}; it has {', '.join(names)}")
            columns[f"{SUBGROUP}{name}"] = column_of(self._read(name), name=name)
        return pa.table(columns)

    def _numbered(self) -> Any:
        """The column of labels with the classes numbered; a list says of each of them whether the scan has it."""
        column = self._read("label")
        if self._words is not None:
            return pc.index_in(column, value_set=pa.array(self._words)).cast(pa.int64())
        if self._names is None and not self._is_listed:
            return pc.index_in(column, value_set=pa.array(self._codes, column.type)).cast(pa.int64())
        return column

    def _matrix(self) -> pa.FixedSizeListArray:
        """The columns of findings as one column of lists."""
        columns = []
        for name in self._findings:
            column = self._read(name)
            if column.null_count:
                raise DataError(
                    f"{self.path}: column {name!r} is empty in {column.null_count} of {len(column)} rows; it says 0 or "
                    "1 of each scan"
                )
            columns.append(np.asarray(column.cast(pa.int64()).to_numpy()))
        return list_column(np.stack(columns, axis=1))

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        """Decode the pictures in the order of the file, as uint8 (b, channels, size, size)."""
        return batches(self._pictures(), size=size, channels=channels)

    def pictures_at(self, rows: Integers) -> Iterator[Pixels]:
        """The pictures in some rows, ascending, at their own size; only these are decoded."""
        wanted = set(rows.tolist())
        return (self._decoded(row, data) for row, data in enumerate(self._files()) if row in wanted)

    def faults(self) -> list[str]:
        """What is wrong with each picture that cannot be read, in one line each."""
        found = []
        for row, data in enumerate(self._files()):
            try:
                self._decoded(row, data)
            except DataError as error:
                found.append(str(error))
        return found

    def _pictures(self) -> Iterator[Pixels]:
        return (self._decoded(row, data) for row, data in enumerate(self._files()))

    def _decoded(self, row: int, data: object) -> Pixels:
        if not isinstance(data, bytes):
            raise DataError(f"{self.path}: row {row} holds no picture bytes")
        return decode(data, name=f"{self.path}: row {row}")

    def _files(self) -> Iterator[object]:
        """The pictures as they are stored, row by row."""
        is_struct = pa.types.is_struct(self._schema.field("image").type)
        with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
            for batch in file.iter_batches(batch_size=64, columns=["image"]):
                column = batch.column(0).field("bytes") if is_struct else batch.column(0)
                for value in column:
                    yield value.as_py()


def _finding_columns(names: list[str]) -> tuple[str, ...]:
    return () if "label" in names else tuple(name for name in names if name.startswith(FINDING) and name != FINDING)


def _says_yes_or_no(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _holds_words(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
