"""Would a random split lie? Near-identical pictures, the groups they form, and what a look-up of pixels scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedplatform.core.seeding import numpy_generator
from fedplatform.core.tasks import distinct
from fedplatform.data.brightness import Pixels
from fedplatform.data.index import Index, Integers
from fedplatform.data.source import Source
from fedplatform.data.splits import deal_into_parts, strata_of

Floats = npt.NDArray[np.float32]

THUMBNAIL = 24
PIXELS = 64
DARK = 30
THRESHOLD = 0.93
STRICTER = (0.97, 0.99)  # where pictures look alike anyway, as skin does
THE_SAME = 0.99  # between the two sides of a split: high enough for pictures that look alike anyway
PARTS = 5
BLOCK = 1 << 22  # similarities held at a time, 16 MiB of float32


@dataclass(frozen=True)
class AuditReport:
    """What is known of a data set's leaks; counts are of scans unless said otherwise.

    ``searched`` scans were searched for twins and ``queries`` of them looked up (fewer than ``scans`` where the set is
    large). Where a scan has any number of findings, the rarest that it has stands for its class. ``duplicates`` repeat
    an earlier scan pixel by pixel, ``conflicting`` have such a copy of another class.
    ``given_groups`` is None where the source has none; ``found_groups`` are components of near-identical pictures,
    ``twins`` the scans in a component of more than one, ``largest_group`` the size of the largest. The accuracies are
    those of the nearest neighbour on raw pixels (cosine at 64 x 64, grey, zero mean), over five test parts of a fifth
    each; the group-safe parts are pairs of the folds, where the source has folds; ``published_accuracy`` on the
    published test set, None where there is none. ``majority`` is the share of the largest class.
    """

    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    scans: int
    searched: int
    queries: int
    duplicates: int
    conflicting: int
    given_groups: int | None
    found_groups: int
    twins: int
    largest_group: int
    random_accuracies: tuple[float, ...]
    group_safe_accuracies: tuple[float, ...]
    published_accuracy: float | None
    majority: float
    warnings: tuple[str, ...]

    @property
    def random_accuracy(self) -> float:
        """Mean over the five parts of a split by picture."""
        return float(np.mean(self.random_accuracies))

    @property
    def group_safe_accuracy(self) -> float:
        """Mean over the five parts of a split by group."""
        return float(np.mean(self.group_safe_accuracies))


def audit(
    source: Source, *, seed: int = 0, threshold: float = THRESHOLD, max_scans: int = 50_000, max_queries: int = 3_000
) -> AuditReport:
    """Look for leaks in a data set.

    Of more than ``max_scans`` scans a random sample is searched; of more than ``max_queries`` as many are looked up,
    each among all the others.
    """
    index = Index.of(source)
    generator = numpy_generator(seed, "audit")
    kept = np.arange(len(index))
    if len(index) > max_scans:
        kept = np.sort(generator.choice(len(index), max_scans, replace=False))
    pixels, digests = _small_pictures(source, kept, len(index))
    kinds = index.kinds
    labels = kinds[kept]

    thumbnails = np.stack([thumbnail(picture) for picture in pixels])
    found = find_groups(thumbnails, labels, threshold)
    sizes = np.bincount(found)
    trusted = found if index.groups is None else np.unique(index.groups[kept], return_inverse=True)[1]

    queries = np.sort(generator.permutation(len(kept))[:max_queries])
    by_picture = deal_into_parts(np.arange(len(kept)), labels, parts=PARTS, generator=generator)
    by_group = (
        deal_into_parts(trusted, labels, parts=PARTS, generator=generator)
        if index.folds is None
        else np.unique(index.folds[kept], return_inverse=True)[1] * PARTS // len(np.unique(index.folds[kept]))
    )
    splits = [by_picture, by_group]
    published: Integers | None = None
    if index.splits is not None and (index.splits[kept[queries]] == "test").any():
        published = np.asarray(index.splits[kept] == "test", np.int64)
        splits.append(published)
    hits = _nearest_neighbour_hits(pixels, labels, splits, queries)

    copies, conflicting = _copies(digests, distinct(index.labels))
    report = AuditReport(
        classes=index.classes,
        class_counts=tuple(int(count) for count in index.class_counts),
        scans=len(index),
        searched=len(kept),
        queries=len(queries),
        duplicates=copies,
        conflicting=conflicting,
        given_groups=None if index.groups is None else len(np.unique(index.groups)),
        found_groups=len(sizes),
        twins=int(sizes[sizes > 1].sum()),
        largest_group=int(sizes.max()),
        random_accuracies=_by_part(hits[0], by_picture[queries]),
        group_safe_accuracies=_by_part(hits[1], by_group[queries]),
        published_accuracy=None if published is None else _by_part(hits[2], published[queries])[-1],
        majority=float(np.bincount(kinds).max() / len(index)),
        warnings=(),
    )
    return replace(report, warnings=_warnings(report))


def thumbnail(picture: Pixels) -> Floats:
    """A grey picture (h, w) as (576,) float32: dark border cropped, 24 x 24, zero mean, unit norm (0 where flat)."""
    bright = picture > DARK
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    if len(rows):
        picture = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    small = Image.fromarray(picture).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    row: Floats = _unit(np.asarray(small, np.float32).reshape(1, -1))[0]
    return row


def thumbnails_of(source: Source) -> Floats:
    """The thumbnails of all scans of a source, (n, 576)."""
    batches = source.images(size=PIXELS, channels=1)
    return np.concatenate([np.stack([thumbnail(picture[0]) for picture in batch]) for batch in batches])


def find_groups(thumbnails: Floats, labels: Integers, threshold: float = THRESHOLD) -> Integers:
    """Number the groups of near-identical pictures, (n,) int64 from 0.

    Two pictures of a class are near-identical where the cosine of their ``thumbnails`` (n, 576) is at least
    ``threshold`` in the best of the 8 flips and rotations; a group is a connected component of such pairs.
    """
    groups = np.empty(len(labels), np.int64)
    start = 0
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        components = _components(thumbnails[rows], threshold)
        groups[rows] = start + components
        start += int(components.max()) + 1
    return groups


def groups_of(source: Source, index: Index, *, threshold: float = THRESHOLD) -> Integers:
    """What a split must never cut, (n,) int64: the given groups, else the near-identical pictures that are found.

    In a set that brings its own split every scan counts by itself: whoever published it vouches for it, and on sets
    such as MNIST, where whole classes look alike, the search would find one group a class. Where one group would hold
    a good part of a class, because pictures of this kind look alike, the threshold rises. A group never goes beyond its
    site: near-identical pictures of two hospitals are not of one patient.
    """
    if index.groups is not None:
        return index.groups
    if index.splits is not None or index.folds is not None:
        return np.arange(len(index))
    return search_groups(thumbnails_of(source), index, threshold=threshold)


def search_groups(thumbnails: Floats, index: Index, *, threshold: float = THRESHOLD) -> Integers:
    """Groups of near-identical pictures within a class of a site, (n,), at a threshold that fits the pictures."""
    strata, _ = strata_of(index)
    found = np.arange(len(index))
    for at_least in (threshold, *(higher for higher in STRICTER if higher > threshold)):
        found = find_groups(thumbnails, strata, at_least)
        if not _too_coarse(int(np.bincount(found).max()), scans=len(index), classes=len(index.kind_names)):
            break
    return found


def share_on_both_sides(left: Floats, right: Floats, *, threshold: float = THE_SAME) -> float:
    """The share of the thumbnails ``left`` (n, 576) that have a near-identical one among ``right`` (m, 576)."""
    best = np.full(len(left), -1.0, np.float32)
    width = max(1, BLOCK // max(1, len(left)))
    for start in range(0, len(right), width):
        np.maximum(best, _best_of_eight(left, right[start : start + width]).max(axis=1), out=best)
    return float((best >= threshold).mean()) if len(left) else 0.0


def _too_coarse(largest: int, *, scans: int, classes: int) -> bool:
    return largest > max(50, scans // (4 * classes))


def _components(thumbnails: Floats, threshold: float) -> Integers:
    """Connected components within one class, block by block, so that only one block's pairs are ever held."""
    from scipy.sparse import coo_array  # slow to import, and every hospital imports this module
    from scipy.sparse.csgraph import connected_components

    count = len(thumbnails)
    components = np.arange(count)
    height = max(1, BLOCK // count)
    for start in range(0, count, height):
        best = _best_of_eight(thumbnails[start : start + height], thumbnails[start:])
        left, right = np.nonzero(best >= threshold)
        pairs = (components[left + start], components[right + start])
        graph = coo_array((np.ones(len(left), np.bool_), pairs), shape=(count, count))
        _, merged = connected_components(graph, directed=False)
        components = merged[components]
    return np.asarray(np.unique(components, return_inverse=True)[1], np.int64)


def _best_of_eight(left: Floats, right: Floats) -> Floats:
    """Cosines (n, m) of thumbnails, each the best over the eight flips and rotations of the left one."""
    block = left.reshape(-1, THUMBNAIL, THUMBNAIL)
    best = np.full((len(block), len(right)), -1.0, np.float32)
    for flipped in (block, block[:, :, ::-1]):
        for turns in range(4):
            turned = np.rot90(flipped, turns, axes=(1, 2)).reshape(len(block), -1)
            np.maximum(best, turned @ right.T, out=best)
    return best


def _small_pictures(source: Source, kept: Integers, count: int) -> tuple[Pixels, list[bytes]]:
    """The kept pictures as (k, 64, 64) grey, and a digest of every picture."""
    wanted = np.zeros(count, np.bool_)
    wanted[kept] = True
    small = np.empty((len(kept), PIXELS, PIXELS), np.uint8)
    digests: list[bytes] = []
    filled = 0
    for batch in source.images(size=PIXELS, channels=1):
        here = wanted[len(digests) : len(digests) + len(batch)]
        digests += [blake2b(picture.tobytes(), digest_size=16).digest() for picture in batch]
        chosen = batch[here, 0]
        small[filled : filled + len(chosen)] = chosen
        filled += len(chosen)
    return small, digests


def _copies(digests: list[bytes], labels: Integers) -> tuple[int, int]:
    """How many scans repeat an earlier one, and how many have a copy of another class."""
    _, same = np.unique(np.array(digests, "S16"), return_inverse=True)
    distinct = int(same.max()) + 1
    lowest, highest = np.full(distinct, np.iinfo(np.int64).max), np.full(distinct, -1)
    np.minimum.at(lowest, same, labels)
    np.maximum.at(highest, same, labels)
    return len(digests) - distinct, int((lowest != highest)[same].sum())


def _nearest_neighbour_hits(
    pixels: Pixels, labels: Integers, splits: list[Integers], queries: Integers
) -> list[npt.NDArray[np.bool_]]:
    """For each split, whether the query's most similar picture outside the query's own part is of its class."""
    best = [np.full(len(queries), -2.0, np.float32) for _ in splits]
    answer = [np.full(len(queries), -1) for _ in splits]
    asked = _unit(pixels[queries].reshape(len(queries), -1).astype(np.float32))
    width = max(1, BLOCK // len(queries))
    for start in range(0, len(pixels), width):
        rows = slice(start, start + width)
        known = _unit(pixels[rows].reshape(-1, PIXELS * PIXELS).astype(np.float32))
        similarity = asked @ known.T
        for split, so_far, label in zip(splits, best, answer, strict=True):
            allowed = np.where(split[queries][:, None] == split[rows][None], np.float32(-2), similarity)
            nearest = allowed.argmax(axis=1)
            value = allowed[np.arange(len(queries)), nearest]
            better = value > so_far
            so_far[better] = value[better]
            label[better] = labels[rows][nearest[better]]
    return [label == labels[queries] for label in answer]


def _by_part(hits: npt.NDArray[np.bool_], parts: Integers) -> tuple[float, ...]:
    return tuple(float(hits[parts == part].mean()) for part in np.unique(parts))


def _unit(rows: Floats) -> Floats:
    centred = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.where(norms > 0, norms, 1), np.float32)


def _warnings(report: AuditReport) -> tuple[str, ...]:
    found: list[str] = []
    gap = report.random_accuracy - report.group_safe_accuracy
    if gap > 0.05:
        found.append(
            "a random split overestimates accuracy: looking up the nearest picture scores "
            f"{report.random_accuracy:.3f} on it and {report.group_safe_accuracy:.3f} on a group-safe one; "
            "split by group"
        )
    if report.duplicates:
        found.append(f"copies pixel by pixel: {report.duplicates} of {report.scans} scans repeat another")
    if report.conflicting:
        found.append(f"conflicting labels: {report.conflicting} of {report.scans} scans have a copy of another class")
    if report.given_groups is None and report.twins > report.searched // 20:
        found.append(
            f"no groups are given, and {report.twins} of {report.searched} scans have a near-identical twin; "
            "give the patients if they are known"
        )
    if _too_coarse(report.largest_group, scans=report.searched, classes=len(report.classes)):
        found.append(
            f"the largest group found has {report.largest_group} of {report.searched} scans: pictures of this kind "
            "look alike, so the groups found are too coarse"
        )
    smallest = min(report.class_counts)
    if smallest * 10 < max(report.class_counts):
        name = report.classes[report.class_counts.index(smallest)]
        found.append(f"class {name!r} has {smallest} of {report.scans} scans; accuracy will hide it, read macro-F1")
    if report.searched < report.scans:
        found.append(f"near-identical pictures were searched for in a sample of {report.searched} of {report.scans}")
    return tuple(found)
