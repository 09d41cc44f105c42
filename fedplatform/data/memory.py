"""Scans that are in memory already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fedplatform.core.tasks import is_multilabel
from fedplatform.data.brightness import Pixels
from fedplatform.data.error import DataError
from fedplatform.data.index import list_column
from fedplatform.data.pictures import batches
from fedplatform.data.subgroups import Subgroups, checked
from fedplatform.data.subgroups import columns as subgroup_columns


@dataclass(frozen=True, eq=False, repr=False)
class InMemoryScans:
    """Scans in memory, a :class:`fedplatform.data.source.Source`; made by :func:`from_arrays`.

    ``pixels`` is (n, h, w) or (n, h, w, 3) uint8, ``labels`` (n,) or (n, k) int64, ``groups`` (n,) int64 and ``sites``
    (n,) str or None.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    groups: npt.NDArray[np.int64] | None = None
    sites: npt.NDArray[np.str_] | None = None
    name: str = field(default="in-memory")
    subgroups: Subgroups = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return 3 if self.pixels.ndim == 4 else 1

    @property
    def is_multilabel(self) -> bool:
        """Whether a scan has any number of findings."""
        return is_multilabel(self.labels)

    @property
    def side(self) -> int:
        """The longer side of a scan, in pixels."""
        return int(max(self.pixels.shape[1:3]))

    def index(self) -> pa.Table:
        """One row a scan: label, and group and site where they are known."""
        columns: dict[str, object] = {"label": list_column(self.labels) if self.is_multilabel else self.labels}
        if self.groups is not None:
            columns["group"] = self.groups
        if self.sites is not None:
            columns["site"] = pa.array(self.sites.tolist(), pa.string())
        return pa.table({**columns, **subgroup_columns(self.subgroups)})

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        """The scans resized, as uint8 batches (b, channels, size, size)."""
        return batches(self._each(), size=size, channels=channels)

    def _each(self) -> Iterator[Pixels]:
        yield from self.pixels

    def __repr__(self) -> str:
        count, height, width = self.pixels.shape[:3]
        kind = "colour" if self.channels == 3 else "grey"
        groups = "" if self.groups is None else f", {len(np.unique(self.groups))} groups"
        return f"{count} {kind} scans of {height} x {width} pixels, classes: {', '.join(self.classes)}{groups}"


def from_arrays(
    images: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    sites: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    subgroups: Mapping[str, Sequence[object]] | None = None,
    name: str = "in-memory",
) -> InMemoryScans:
    """Make a data set of scans in memory, for :func:`fedplatform.run`.

    ``images`` is (n, h, w), (n, c, h, w) or (n, h, w, c) with one or three channels: uint8, or floats in [0, 1], which
    are kept to 8 bits. ``labels`` (n,) are whole numbers; ``classes`` names them in ascending order (default: the
    numbers themselves). Labels (n, k) of 0 and 1 say which of k findings a scan has, and ``classes`` names these.
    ``groups`` (n,) says which scans belong together, such as those of one patient: no split cuts a
    group. Without, near-identical scans are searched for. ``sites`` (n,) names the hospital of each scan. ``subgroups``
    are (n,) words or numbers by name, such as ``{"sex": [...]}``: figures are split by them. Raises
    :class:`DataError` where they do not fit together.

    >>> import numpy as np
    >>> from_arrays(np.zeros((4, 8, 8)), [0, 1, 0, 1], groups=[0, 0, 1, 1])
    4 grey scans of 8 x 8 pixels, classes: 0, 1, 2 groups
    """
    pixels = _pixels(np.asarray(images))
    n = len(pixels)
    places, names = _labels(np.asarray(labels), n, classes)
    kept = None if groups is None else np.asarray(groups)
    if kept is not None and (kept.shape != (n,) or not np.issubdtype(kept.dtype, np.integer)):
        raise DataError(f"groups are one whole number a scan ({n}), got {kept.dtype} {kept.shape}")
    if sites is not None and len(sites) != n:
        raise DataError(f"sites are one name a scan ({n}), got {len(sites)}")
    return InMemoryScans(
        pixels,
        places,
        names,
        None if kept is None else kept.astype(np.int64),
        None if sites is None else np.asarray(sites, dtype=np.str_),
        name,
        checked(subgroups or {}, scans=n),
    )


def _labels(
    numbers: np.ndarray, n: int, classes: Sequence[str] | None
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Labels (n,) from 0, or findings (n, k), and the names of the classes."""
    if is_multilabel(numbers) and numbers.shape[1] > 1:
        if len(numbers) != n or not np.isin(numbers, (0, 1)).all():
            raise DataError(
                f"labels of findings are 0 or 1, a row for each of {n} scans, got {numbers.dtype} {numbers.shape} of "
                f"{numbers.min()} to {numbers.max()}"
            )
        places, found = numbers, np.arange(numbers.shape[1])
    else:
        if numbers.shape != (n,) or not np.issubdtype(numbers.dtype, np.integer):
            raise DataError(f"labels are one whole number a scan ({n}), got {numbers.dtype} {numbers.shape}")
        found, places = np.unique(numbers, return_inverse=True)
    names = tuple(map(str, found)) if classes is None else tuple(classes)
    if len(names) != len(found):
        what = "findings" if is_multilabel(numbers) else "different labels"
        raise DataError(f"{len(found)} {what} need as many classes, got {len(names)}")
    return places.astype(np.int64), names


def _pixels(images: np.ndarray) -> npt.NDArray[np.uint8]:
    """Images of any accepted form as (n, h, w) or (n, h, w, 3) uint8."""
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        images = np.moveaxis(images, 1, 3)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim != 3 and not (images.ndim == 4 and images.shape[3] == 3):
        raise DataError(f"images are (n, h, w) or (n, c, h, w) with one or three channels, got {images.shape}")
    if not len(images):
        raise DataError("a data set needs at least one scan, got none")
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"images are uint8, or floats in [0, 1], got {images.dtype}")
    if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
        raise DataError(f"float images are in [0, 1], got {images.min():.3g} to {images.max():.3g}")
    return (255 * images).round().astype(np.uint8)
