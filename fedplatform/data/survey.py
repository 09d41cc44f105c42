"""A look at some of a data set's pictures before anything is decided: how large, how coloured, how alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fedplatform.core.seeding import numpy_generator
from fedplatform.data.brightness import Pixels
from fedplatform.data.index import Index, Integers
from fedplatform.data.leakage import PIXELS, search_groups, share_on_both_sides, thumbnail
from fedplatform.data.pictures import fit
from fedplatform.data.source import Source
from fedplatform.data.splits import Role

LOOKED_AT = 600  # pictures, where only their form is asked
SEARCHED = 3_000  # pictures, where near-identical ones are searched for
QUERIES = 1_000  # of them on the side of the test
ENOUGH = 40  # pictures of a class, to ask whether it may be mirrored
SMALL = 16  # pixels a side of what a mirror image is told by
RIDGE = 0.1


@runtime_checkable
class PicksPictures(Protocol):
    """A source that can show some of its pictures without reading all of them."""

    def pictures_at(self, rows: Integers) -> Iterator[Pixels]:
        """The pictures in some rows of the index, ascending, at their own size."""
        ...


@dataclass(frozen=True)
class Survey:
    """What a sample of the pictures looks like.

    ``side`` is the median of their longer sides, ``sides`` the least and the largest. ``grey`` is the share of pictures
    without colour. ``mirrored`` is the share of pictures that a linear rule tells from their own mirror image: about .5
    where left and right mean nothing. ``found_groups`` counts groups of near-identical pictures, None where none were
    searched for; ``on_both_sides`` is the share of test scans with a near-identical picture in training, of those that
    were looked up, ``None`` where the split is still to be drawn.
    """

    looked_at: int
    side: int
    sides: tuple[int, int]
    grey: float
    mirrored: float
    found_groups: int | None
    on_both_sides: float | None


def survey(
    source: Source, index: Index, *, roles: npt.NDArray[np.str_] | None, progress: Callable[[int, int], None]
) -> Survey:
    """Look at a sample of a source, drawn by a fixed seed; at all of it where it is small.

    With ``roles`` (n,) near-identical pictures are searched for between training and test, else in all of a small set.
    """
    generator = numpy_generator(0, "survey")
    rows = _sample(index, roles, generator)
    sides, colours = np.empty(len(rows), np.int64), np.empty(len(rows), np.bool_)
    thumbnails, small = np.empty((len(rows), 24 * 24), np.float32), np.empty((len(rows), SMALL, SMALL), np.float32)
    for number, picture in enumerate(_pictures(source, rows)):
        sides[number] = max(picture.shape[:2])
        colours[number] = picture.ndim == 3 and bool((picture != picture[..., :1]).any())
        thumbnails[number] = thumbnail(fit(picture, size=PIXELS, channels=1)[0])
        small[number] = fit(picture, size=SMALL, channels=1)[0]
        progress(number + 1, len(rows))
    found, crossing = None, None
    if roles is not None:
        test = roles[rows] == Role.TEST
        crossing = share_on_both_sides(thumbnails[test], thumbnails[roles[rows] == Role.TRAIN])
    elif len(rows) == len(index):
        found = int(search_groups(thumbnails, index).max()) + 1
    return Survey(
        looked_at=len(rows),
        side=int(np.median(sides)),
        sides=(int(sides.min()), int(sides.max())),
        grey=float(1 - colours.mean()),
        mirrored=told_from_mirror(small, index.kinds[rows]),
        found_groups=found,
        on_both_sides=crossing,
    )


def told_from_mirror(pictures: npt.NDArray[np.float32], labels: Integers) -> float:
    """The share of pictures (n, s, s) that a linear rule tells from their mirror image, in the class where it is most.

    The rule is learned on one half of a class and tried on the other, both ways round. It sees the difference of a
    picture and its mirror image, so .5 is guessing. Classes of few pictures do not count; 1 where all are such.
    """
    flat = pictures.reshape(len(pictures), -1)
    spread = flat.std(axis=1).reshape(-1, 1, 1)
    normal = (pictures - flat.mean(axis=1).reshape(-1, 1, 1)) / np.where(spread > 0, spread, 1)
    odd = (normal - normal[:, :, ::-1])[:, :, : SMALL // 2].reshape(len(pictures), -1).astype(np.float64)
    shares = [_told(odd[labels == label]) for label in np.unique(labels) if (labels == label).sum() >= ENOUGH]
    return max(shares, default=1.0)


def _told(odd: npt.NDArray[np.float64]) -> float:
    halves = np.arange(len(odd)) % 2 == 0
    right = 0
    for known in (halves, ~halves):
        learned = odd[known]
        spread = learned.T @ learned / len(learned)
        ridge = RIDGE * np.trace(spread) * np.eye(len(spread)) / len(spread) + 1e-9 * np.eye(len(spread))
        right += int((odd[~known] @ np.linalg.solve(spread + ridge, learned.mean(axis=0)) > 0).sum())
    return right / len(odd)


def _sample(index: Index, roles: npt.NDArray[np.str_] | None, generator: np.random.Generator) -> Integers:
    """Ascending rows: all of a set that is small enough to be searched, else as many as the question needs."""
    everything = np.arange(len(index))
    if len(index) <= SEARCHED:
        return everything
    if roles is None:
        return np.sort(generator.choice(everything, LOOKED_AT, replace=False))
    test, training = np.flatnonzero(roles == Role.TEST), np.flatnonzero(roles == Role.TRAIN)
    queries = generator.permutation(test)[:QUERIES]
    return np.sort(np.concatenate([queries, generator.permutation(training)[: SEARCHED - len(queries)]]))


def _pictures(source: Source, rows: Integers) -> Iterator[Pixels]:
    if isinstance(source, PicksPictures):
        yield from source.pictures_at(rows)
        return
    wanted, row = set(rows.tolist()), 0
    for batch in source.images(size=PIXELS, channels=source.channels):
        for picture in batch:
            if row in wanted:
                yield picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
            row += 1
