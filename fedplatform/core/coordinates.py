"""Which coordinates to look at where looking at all d of them would say no more."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fedplatform.core.mapped import RELEASE_BYTES, releasing

COUNTED = 4096


def evenly_spaced(deltas: np.ndarray) -> np.ndarray:
    """At most 4,096 evenly spaced columns, always the same ones: (n, d) to (n, s). For reports, not for judging."""
    step = max(1, -(-deltas.shape[1] // COUNTED))
    # Copied block by block: views would be read only when all blocks of a file had been let go of, and all at once.
    return np.concatenate([deltas[rows, ::step].copy() for rows in row_blocks(deltas)])


def random_columns(deltas: np.ndarray, count: int, *, generator: torch.Generator) -> np.ndarray:
    """Up to ``count`` columns that no attacker can foresee: (n, d) to (n, s), or all of them where d is no larger."""
    places = random_places(deltas.shape[1], count, generator=generator)
    if places is None:
        return deltas
    return np.concatenate([np.take(deltas[rows], places, axis=1) for rows in row_blocks(deltas)])


def random_places(d: int, count: int, *, generator: torch.Generator) -> np.ndarray | None:
    """Up to ``count`` of d coordinates, ascending, that no attacker can foresee; None for all where d is no larger.

    Drawn with repetition and then made unique, which for count well below d is nearly the same set and needs no
    permutation of d numbers.
    """
    if d <= count:
        return None
    return np.unique(torch.randint(d, (count,), generator=generator).numpy())


def row_blocks(deltas: np.ndarray) -> Iterator[slice]:
    """The rows of (n, d) updates, some megabytes of them at a time, for updates in a file as well as in memory."""
    n, d = deltas.shape
    size = d * deltas.itemsize
    height = max(1, RELEASE_BYTES // max(size, 1))
    return releasing(deltas, (slice(start, min(start + height, n)) for start in range(0, n, height)), bytes_of_one=size)
