"""A source's index, checked once and held as arrays, so that nothing after it has to check again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedplatform.core.tasks import counts_by_class, is_multilabel, kind_names, kinds_of
from fedplatform.data.error import DataError
from fedplatform.data.origin import Origin
from fedplatform.data.source import Source
from fedplatform.data.subgroups import Subgroups, subgroups_in

Integers = npt.NDArray[np.int64]
Strings = npt.NDArray[np.str_]

PUBLISHED_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Index:
    """What is known of every scan without its pixels; all arrays are (n,), in the order of the source.

    ``labels`` are 0 to len(classes) - 1, or (n, len(classes)) of 0 and 1 where a scan has any number of findings.
    ``groups`` (patient, near-identical pictures), ``folds`` 0-9, ``sites`` and
    ``splits`` ("train", "validation" or "test", as the set was published) are None where the source has none.
    ``origins`` are the kinds of files that its headers name. ``subgroups`` are words a scan, by the name of the column.
    """

    classes: tuple[str, ...]
    labels: Integers
    groups: Integers | None = None
    folds: Integers | None = None
    sites: Strings | None = None
    splits: Strings | None = None
    origins: tuple[Origin, ...] = ()
    subgroups: Subgroups = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_counts(self) -> Integers:
        """Scans by class, or with each finding, (len(classes),)."""
        return counts_by_class(self.labels, len(self.classes))

    @property
    def is_multilabel(self) -> bool:
        """Whether a scan has any number of findings."""
        return is_multilabel(self.labels)

    @property
    def kinds(self) -> Integers:
        """What scans are stratified by, (n,): :func:`fedplatform.core.tasks.kinds_of`."""
        return kinds_of(self.labels)

    @property
    def kind_names(self) -> tuple[str, ...]:
        """What the kinds are called."""
        return kind_names(self.classes, multilabel=self.is_multilabel)

    def at(self, rows: npt.NDArray[np.bool_]) -> Index:
        """The index of some of the scans only; ``rows`` is (n,) bool."""

        def kept(column: Any) -> Any:
            return None if column is None else column[rows]

        return Index(
            self.classes,
            self.labels[rows],
            groups=kept(self.groups),
            folds=kept(self.folds),
            sites=kept(self.sites),
            splits=kept(self.splits),
            origins=self.origins,
            subgroups={name: words[rows] for name, words in self.subgroups.items()},
        )

    @staticmethod
    def of(source: Source) -> Index:
        """Read and check the index of a source.

        Raises DataError where it is empty, has a gap, a label outside the classes, or fewer than two classes. A site of
        a federation may have scans of one of them only. A list in the place of a label says of each class whether the
        scan has it.
        """
        table = source.index()
        classes = source.classes
        if table.num_rows == 0:
            raise DataError("the data set is empty")
        if "label" not in table.column_names:
            raise DataError(f"the index needs a column 'label', got {', '.join(table.column_names)}")
        labels = _findings(table, classes) if holds_lists(table.column("label").type) else _one_class(table, classes)
        splits = _strings(table, "split")
        if splits is not None and not set(splits) <= set(PUBLISHED_SPLITS):
            raise DataError(f"a split is one of {', '.join(PUBLISHED_SPLITS)}, got {', '.join(sorted(set(splits)))}")
        return Index(
            classes,
            labels,
            groups=_integers(table, "group") if "group" in table.column_names else None,
            folds=_integers(table, "fold") if "fold" in table.column_names else None,
            sites=_strings(table, "site"),
            splits=splits,
            origins=_origins(table),
            subgroups=subgroups_in(table),
        )


def _origins(table: pa.Table) -> tuple[Origin, ...]:
    names = ("modality", "body_part", "burned_in")
    if not set(names) <= set(table.column_names):
        return ()
    columns = (table.column(name).to_pylist() for name in names)
    return tuple(sorted({Origin(*row) for row in zip(*columns, strict=True)}))


def holds_lists(kind: Any) -> bool:
    """Whether a column of this type holds a list in each row."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def list_column(matrix: Integers) -> pa.FixedSizeListArray:
    """Findings (n, k) as a column of lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def matrix_of(column: Any, width: int) -> Integers:
    """A column of lists, each ``width`` long, as (n, width) int64; the caller knows that they are."""
    flat = np.asarray(pc.cast(pc.list_flatten(column), pa.int64()).to_numpy())
    return flat.reshape(len(column), width)


def _one_class(table: pa.Table, classes: tuple[str, ...]) -> Integers:
    labels = _integers(table, "label")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"labels of {len(classes)} classes are 0 to {len(classes) - 1}, got {labels.min()} to {labels.max()}"
        )
    if len(classes) < 2:
        raise DataError(f"a classifier needs two classes, got scans of {classes[0]!r} only")
    return labels


def _findings(table: pa.Table, classes: tuple[str, ...]) -> Integers:
    column = _column(table, "label")
    kind = column.type.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise DataError(f"a list in column 'label' says 0 or 1 of each finding, got {column.type}")
    lengths = set(pc.list_value_length(column).unique().to_pylist())
    if lengths != {len(classes)}:
        raise DataError(
            f"a list in column 'label' says 0 or 1 of each of {len(classes)} findings, got lists of "
            f"{', '.join(map(str, sorted(lengths)))}"
        )
    if pc.list_flatten(column).null_count:
        raise DataError("a list in column 'label' says 0 or 1 of each finding, got empty places")
    labels = matrix_of(column, len(classes))
    if not np.isin(labels, (0, 1)).all():
        raise DataError(f"a list in column 'label' says 0 or 1 of each finding, got {labels.min()} to {labels.max()}")
    return labels


def _column(table: pa.Table, name: str) -> Any:
    column = table.column(name)
    if column.null_count:
        raise DataError(f"column {name!r} is empty in {column.null_count} of {table.num_rows} rows")
    return column


def _integers(table: pa.Table, name: str) -> Integers:
    column = _column(table, name)
    if not pa.types.is_integer(column.type):
        raise DataError(f"column {name!r} must hold whole numbers, got {column.type}")
    return np.asarray(pc.cast(column, pa.int64()).to_numpy())


def _strings(table: pa.Table, name: str) -> Strings | None:
    if name not in table.column_names:
        return None
    return np.asarray(_column(table, name).to_pylist(), dtype=np.str_)


def numbered(names: list[str]) -> pa.Array:
    """Number names by their first appearance: ["b", "a", "b"] gives [0, 1, 0], int64."""
    return pc.cast(pa.array(names, pa.string()).dictionary_encode().indices, pa.int64())
