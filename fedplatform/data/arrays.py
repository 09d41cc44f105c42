"""Scans in one npz file, in the two layouts that data sets are published in."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from fedplatform.core.tasks import is_multilabel
from fedplatform.data.brightness import Pixels
from fedplatform.data.error import DataError
from fedplatform.data.index import Integers, list_column
from fedplatform.data.pictures import BATCH, batches

LABEL_NAMES = "label_names"  # of an array that names the findings; the layouts have none
# (pictures, labels, published split) of every part, by layout.
LAYOUTS = {
    "MedMNIST": (
        ("train_images", "train_labels", "train"),
        ("val_images", "val_labels", "validation"),
        ("test_images", "test_labels", "test"),
    ),
    "Keras": (("x_train", "y_train", "train"), ("x_test", "y_test", "test")),
}


@dataclass(frozen=True)
class ArraySource:
    """Scans in an npz file of the MedMNIST (Yang et al., 2023) or the Keras layout; the published split is kept.

    Pictures are uint8 (n, h, w), (n, h, w, 1) or (n, h, w, 3), labels whole numbers (n,) or (n, 1). Labels (n, k) of 0
    and 1 say which of k findings each scan has, as in ChestMNIST; ``label_names`` (k,) may name them. Pictures are read
    from the archive piece by piece, so a 10 GB file does not have to fit in memory.
    """

    path: Path

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the picture arrays in the order of reading, every array of the layout checked."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = {name.removesuffix(".npy") for name in archive.namelist()}
                parts = _parts(names, self.path)
                heads = {images: _head(archive, images, self.path) for images, _, _ in parts}
        except (OSError, zipfile.BadZipFile, ValueError) as error:
            raise _refused(self.path, error) from error
        for name, (shape, dtype) in heads.items():
            if dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))):
                raise DataError(f"{self.path}: {name} must be uint8 (n, h, w) or (n, h, w, 3), got {dtype} {shape}")
        return {name: shape for name, (shape, _) in heads.items()}

    @cached_property
    def _labels(self) -> dict[str, np.ndarray]:
        """Labels (n,) or (n, k) int64 by published split."""
        labels: dict[str, np.ndarray] = {}
        for images, name, split in _parts_of(self._shapes):
            try:
                with np.load(self.path, allow_pickle=False) as archive:
                    values = archive[name]
            except (OSError, zipfile.BadZipFile, ValueError) as error:
                raise _refused(self.path, error) from error
            labels[split] = _checked(values, rows=self._shapes[images][0], what=f"{self.path}: {name}")
        if len({part.shape[1:] for part in labels.values()}) > 1:
            shapes = ", ".join(f"{split} {part.shape}" for split, part in labels.items())
            raise DataError(f"{self.path}: every part has labels of the same findings, got {shapes}")
        return labels

    @cached_property
    def _all_labels(self) -> Integers:
        """The labels of all parts, (n,) or (n, k) int64."""
        return np.concatenate(list(self._labels.values()))

    @cached_property
    def _codes(self) -> np.ndarray:
        """The numbers that occur as labels, ascending, (k,) int64."""
        return np.unique(self._all_labels)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The numbers that occur as labels; of findings their names where the file has any, else their numbers."""
        if not is_multilabel(self._all_labels):
            return tuple(map(str, self._codes))
        count = self._all_labels.shape[1]
        return self._label_names(count) or tuple(map(str, range(count)))

    def _label_names(self, count: int) -> tuple[str, ...]:
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                names = archive[LABEL_NAMES] if LABEL_NAMES in archive.files else None
        except (OSError, zipfile.BadZipFile, ValueError) as error:
            raise _refused(self.path, error) from error
        if names is None:
            return ()
        if names.shape != (count,) or names.dtype.kind != "U" or len(set(names.tolist())) < count:
            raise DataError(
                f"{self.path}: {LABEL_NAMES} must hold {count} different names, got {names.dtype} {names.shape}"
            )
        return tuple(map(str, names.tolist()))

    @property
    def channels(self) -> int:
        """3 where the pictures are (n, h, w, 3), else 1."""
        return 3 if next(iter(self._shapes.values()))[3:] == (3,) else 1

    def index(self) -> pa.Table:
        """One row a scan: ``label`` and the published ``split``."""
        splits = [np.full(len(part), split) for split, part in self._labels.items()]
        labels = self._all_labels
        return pa.table(
            {
                "label": list_column(labels) if is_multilabel(labels) else np.searchsorted(self._codes, labels),
                "split": pa.array(np.concatenate(splits).tolist(), pa.string()),
            }
        )

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        """Read train, validation and test in this order, as uint8 (b, channels, size, size)."""
        return batches(self._pictures(), size=size, channels=channels)

    def pictures_at(self, rows: Integers) -> Iterator[Pixels]:
        """The pictures in some rows, ascending."""
        wanted = set(rows.tolist())
        return (picture for row, picture in enumerate(self._pictures()) if row in wanted)

    def _pictures(self) -> Iterator[Pixels]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                for name, shape in self._shapes.items():
                    picture = shape[1:3] if shape[3:] == (1,) else shape[1:]
                    with archive.open(f"{name}.npy") as member:
                        _header(member)
                        for start in range(0, shape[0], BATCH):
                            rows = min(BATCH, shape[0] - start)
                            data = member.read(rows * int(np.prod(picture)))
                            yield from np.frombuffer(data, np.uint8).reshape(rows, *picture)
        except (OSError, zipfile.BadZipFile, ValueError, EOFError) as error:
            raise _refused(self.path, error) from error


def _checked(values: np.ndarray, *, rows: int, what: str) -> Integers:
    """Labels as (n,) or (n, k) int64."""
    is_whole = np.issubdtype(values.dtype, np.integer)
    if values.shape in ((rows,), (rows, 1)) and is_whole:
        return values.reshape(-1).astype(np.int64)
    if values.ndim != 2 or len(values) != rows or not values.shape[1] or not (is_whole or values.dtype == np.bool_):
        raise DataError(
            f"{what} must hold one whole number a picture ({rows}), got {values.dtype} {values.shape}; where a scan "
            "has any number of findings, a row of 0 and 1 a picture"
        )
    if not np.isin(values, (0, 1)).all():
        raise DataError(f"{what} must hold 0 or 1 of each finding, got {values.min()} to {values.max()}")
    return values.astype(np.int64)


def _parts(names: set[str], path: Path) -> tuple[tuple[str, str, str], ...]:
    for parts in LAYOUTS.values():
        if all(images in names and labels in names for images, labels, _ in parts):
            return parts
    known = "; ".join(f"{layout}: {', '.join(part[0] for part in parts)}" for layout, parts in LAYOUTS.items())
    raise DataError(f"{path}: unknown layout, it holds {', '.join(sorted(names)) or 'nothing'}; known are {known}")


def _parts_of(shapes: dict[str, tuple[int, ...]]) -> tuple[tuple[str, str, str], ...]:
    return next(parts for parts in LAYOUTS.values() if [part[0] for part in parts] == list(shapes))


def _head(archive: zipfile.ZipFile, name: str, path: Path) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    with archive.open(f"{name}.npy") as member:
        shape, fortran_order, dtype = _header(member)
    if fortran_order:
        raise DataError(f"{path}: {name} is stored column by column; save it again from np.ascontiguousarray")
    return shape, dtype


def _header(member: object) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = np.lib.format.read_magic(member)  # type: ignore[arg-type]
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(member)  # type: ignore[arg-type]
    return shape, fortran_order, dtype


def _refused(path: Path, error: Exception) -> DataError:
    return error if isinstance(error, DataError) else DataError(f"{path}: not a whole npz file ({error})")
