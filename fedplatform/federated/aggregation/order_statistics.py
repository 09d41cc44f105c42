"""Order statistics of every column of (n, d) updates, by a sorting network over blocks that stay in the cache.

A network compares whole rows with ``minimum`` and ``maximum`` and never branches, which vector units like and a sort of
d short columns does not. Comparators whose outcome nobody reads are cut out beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedplatform.core.vectors import blocks_of, column_blocks

# float32 values of a block: 8 MB, which the third-level cache holds. Less would fit the second, but a call of
# NumPy costs half a microsecond whatever the width: 100 rows took twice as long in blocks of 1 MB.
CACHED_VALUES = 2**21
NARROWEST, WIDEST = 1024, 16384
RANKED = 256  # columns whose ranks are looked up at a time, each of which takes some sixty bytes a row
UNREAD = -1


@dataclass(frozen=True)
class Comparator:
    """Puts the smaller of two rows on wire ``low`` and the larger on ``high``; an outcome nobody reads is left out."""

    low: int
    high: int
    reads_low: bool
    reads_high: bool


def merge_exchange(n: int) -> list[tuple[int, int]]:
    """Batcher's odd-even merge sort (1968) of any number of wires, in the order of Knuth's Algorithm 5.2.2M."""
    pairs: list[tuple[int, int]] = []
    top = 1 << max(n - 1, 0).bit_length() >> 1
    p = top
    while p > 0:
        q, r, distance = top, 0, p
        while True:
            pairs += [(i, i + distance) for i in range(n - distance) if i & p == r]
            if q == p:
                break
            distance, q, r = q - p, q >> 1, p
        p >>= 1
    return pairs


@lru_cache(maxsize=64)
def pruned_network(roles: tuple[int, ...]) -> tuple[Comparator, ...]:
    """The comparators that wires with these roles need: equal roles may be exchanged, ``UNREAD`` is read by nobody.

    Walks back from the outputs. Two wires that may be exchanged need no comparing; a compared pair turns into two wires
    that nothing earlier may be confused with.
    """
    current, next_role = list(roles), max(roles) + 1
    kept: list[Comparator] = []
    for low, high in reversed(merge_exchange(len(roles))):
        if current[low] == current[high]:
            continue
        kept.append(Comparator(low, high, reads_low=current[low] != UNREAD, reads_high=current[high] != UNREAD))
        current[low], current[high] = next_role, next_role + 1
        next_role += 2
    return tuple(reversed(kept))


def run(network: tuple[Comparator, ...], wires: list[np.ndarray], spare: np.ndarray) -> None:
    """Send rows through a network in place; rows change hands through ``spare``, so no value is copied."""
    for step in network:
        low, high = wires[step.low], wires[step.high]
        if not step.reads_low:
            np.maximum(low, high, out=high)
        elif not step.reads_high:
            np.minimum(low, high, out=low)
        else:
            np.minimum(low, high, out=spare)
            np.maximum(low, high, out=high)
            wires[step.low], spare = spare, low


def block_width(n: int) -> int:
    """How many columns of n rows are worked on at a time."""
    return min(max(CACHED_VALUES // n, NARROWEST), WIDEST)


def mean_of_ranks(deltas: np.ndarray, first: int, stop: int) -> np.ndarray:
    """Mean of the values of rank ``first`` to ``stop - 1``, smallest 0, in every column: (n, d) to (d,) float32."""
    n, d = deltas.shape
    network = pruned_network(tuple(0 if first <= rank < stop else UNREAD for rank in range(n)))
    result = np.empty(d, dtype=np.float32)
    buffer = np.empty((n + 1, block_width(n)), dtype=np.float32)
    for columns in blocks_of(deltas, width=block_width(n)):
        block = buffer[:, : columns.stop - columns.start]
        block[:n] = deltas[:, columns]
        wires = list(block[:n])
        run(network, wires, block[n])
        total = wires[first]
        for wire in wires[first + 1 : stop]:
            total += wire
        np.multiply(total, np.float32(1 / (stop - first)), out=result[columns])
    return result


def median_ranks(n: int) -> tuple[int, int]:
    """The ranks whose mean is the median of n values: one for odd n, the two in the middle for even n."""
    return (n - 1) // 2, n // 2 + 1


def mean_around_median(deltas: np.ndarray, *, chosen: np.ndarray, count: int) -> np.ndarray:
    """Mean of the ``count`` values of ``chosen`` rows nearest to their median in every column: (n, d) to (d,) float32.

    They are neighbours in rank, so it is enough to find the first of them; of two equally far sets the lower counts.
    """
    n, d = len(chosen), deltas.shape[1]
    network = pruned_network(tuple(range(n)))
    middle, after = median_ranks(n)
    result = np.empty(d, dtype=np.float32)
    buffer = np.empty((n + 1, block_width(n)), dtype=np.float32)
    for columns in blocks_of(deltas, width=block_width(n)):
        block = buffer[:, : columns.stop - columns.start]
        block[:n] = deltas[chosen, columns]
        wires = list(block[:n])
        run(network, wires, block[n])
        median = sum(wires[middle:after]) / np.float32(after - middle)
        nearest = np.full(median.shape, np.inf, dtype=np.float32)
        first = np.zeros(median.shape, dtype=np.int32)
        for start in range(n - count + 1):
            spread = np.maximum(median - wires[start], wires[start + count - 1] - median)
            np.copyto(first, start, where=spread < nearest)
            np.minimum(nearest, spread, out=nearest)
        total = np.zeros(median.shape, dtype=np.float32)
        for rank, wire in enumerate(wires):
            np.add(total, wire, out=total, where=(first <= rank) & (rank < first + count))
        result[columns] = total / np.float32(count)
    return result


def rank_shares(values: np.ndarray, first: int, stop: int) -> np.ndarray:
    """How often each row holds a rank from ``first`` to ``stop - 1``: (n, s) to (n,) float64 that sums to 1.

    Rows that tie in a column share the ranks they hold between them.
    """
    n, s = values.shape
    held = np.zeros(n)
    for columns in column_blocks(s, width=RANKED):
        some = np.ascontiguousarray(values[:, columns].T)
        order = np.argsort(some, axis=1)
        ordered = np.take_along_axis(some, order, axis=1)
        below, upto = _ranks_of_ties(ordered)
        shares = np.maximum(np.minimum(upto, stop) - np.maximum(below, first), 0) / (upto - below)
        by_row = np.empty_like(shares)
        np.put_along_axis(by_row, order, shares, axis=1)
        held += by_row.sum(axis=0)
    held /= s
    held /= stop - first
    return held


def _ranks_of_ties(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each value of ascending rows (s, n), how many are smaller and how many no larger, both (s, n)."""
    n = ordered.shape[1]
    ranks, edges = np.arange(n), ordered[:, 1:] != ordered[:, :-1]
    starts, ends = np.zeros(ordered.shape, dtype=np.int64), np.full(ordered.shape, n, dtype=np.int64)
    np.copyto(starts[:, 1:], ranks[1:], where=edges)
    np.copyto(ends[:, :-1], ranks[1:], where=edges)
    below = np.maximum.accumulate(starts, axis=1)
    upto = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    return below, upto
