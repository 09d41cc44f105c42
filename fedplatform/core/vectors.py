"""Inner products, distances and sums of n long updates, in float64 and with the same bits on every machine load.

Everything that runs over the d coordinates runs over fixed blocks of columns, in order, on one thread, so a result does
not depend on how many threads the process was given, and beside the updates only one float64 block is ever held. Of
updates that lie in a file (:mod:`fedplatform.core.mapped`) only a few blocks are in memory at any time.

Float64 instead of centring: the mean of the updates belongs to whoever sends the largest one, so rows centred on it
would lose their digits exactly when someone lies, while a product around zero is rounded relative to its two rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

from fedplatform.core.mapped import releasing, scratch

BLOCK = 4096


@cache
def _numpy_blas() -> ThreadpoolController:
    return ThreadpoolController()  # looks through every loaded library, so it is made once


def one_blas_thread() -> AbstractContextManager[object]:
    """A context in which NumPy's matrix products run on one thread.

    OpenBLAS cuts a product differently for every number of threads, and the last bits follow the cut.
    """
    limit: AbstractContextManager[object] = _numpy_blas().limit(limits=1, user_api="blas")
    return limit


def column_blocks(d: int, *, width: int = BLOCK) -> Iterator[slice]:
    """Cut d columns into slices of ``width``; the last may be shorter."""
    return (slice(start, min(start + width, d)) for start in range(0, d, width))


def blocks_of(rows: np.ndarray, *, width: int = BLOCK) -> Iterator[slice]:
    """The columns of (n, d) rows in slices of ``width``, for rows in a file as well as in memory."""
    n, d = rows.shape
    return releasing(rows, column_blocks(d, width=width), bytes_of_one=n * rows.itemsize)


def double_blocks(rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The columns of (n, d) rows as float64 blocks, all in the same memory: use one before asking for the next."""
    buffer = np.empty((len(rows), min(BLOCK, rows.shape[1])))
    for columns in blocks_of(rows):
        block = buffer[:, : columns.stop - columns.start]
        np.copyto(block, rows[:, columns])
        yield columns, block


def gram_matrix(deltas: np.ndarray) -> np.ndarray:
    """All inner products of n updates: (n, d) to (n, n) float64."""
    gram = np.zeros((len(deltas), len(deltas)))
    with one_blas_thread():
        for _, block in double_blocks(deltas):
            gram += block @ block.T
    return gram


def distances_from(gram: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (n, n) float64 between the vectors of a Gram matrix; zero diagonal, none negative."""
    squares = np.diag(gram)
    distances: np.ndarray = np.maximum(squares[:, None] + squares[None, :] - 2.0 * gram, 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def cosines_from(gram: np.ndarray) -> np.ndarray:
    """Cosines (n, n) float64 between the vectors of a Gram matrix; 0 to and from a vector of zeros."""
    norms = np.sqrt(np.diag(gram))
    scale = np.outer(norms, norms)
    cosines: np.ndarray = np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0)
    return cosines.clip(-1.0, 1.0)


def squared_norms(deltas: np.ndarray) -> np.ndarray:
    """Squared L2 norm of every update: (n, d) to (n,) float64."""
    squares = np.zeros(len(deltas))
    for _, block in double_blocks(deltas):
        squares += np.einsum("ij,ij->i", block, block)
    return squares


def squared_distances_to(deltas: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Squared distance of every update to one point: (n, d) and (d,) to (n,) float64."""
    squares = np.zeros(len(deltas))
    for columns, block in double_blocks(deltas):
        block -= point[columns]
        squares += np.einsum("ij,ij->i", block, block)
    return squares


def norm_of(vector: np.ndarray) -> float:
    """L2 norm of one vector (d,), summed in float64."""
    return float(np.sqrt(squared_norms(vector[None])[0]))


def cosines_to(deltas: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine of every update to one direction, and the updates' L2 norms: (n, d) and (d,) to (n,) and (n,) float64.

    The cosine is 0 where either vector is all zeros.
    """
    products, squares = np.zeros(len(deltas)), np.zeros(len(deltas))
    for columns, block in double_blocks(deltas):
        products += np.einsum("ij,j->i", block, direction[columns].astype(np.float64))
        squares += np.einsum("ij,ij->i", block, block)
    norms = np.sqrt(squares)
    scale = norms * np.sqrt(np.einsum("j,j->", direction, direction, dtype=np.float64))
    return np.divide(products, scale, out=np.zeros_like(products), where=scale > 0), norms


def products_with(deltas: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Inner product of every update with one direction: (n, d) and (d,) to (n,) float64, blocks summed in float32."""
    products = np.zeros(len(deltas))
    with one_blas_thread():
        for columns in blocks_of(deltas):
            products += deltas[:, columns] @ direction[columns]
    return products


def shrinkage(norms: np.ndarray, limit: float) -> np.ndarray:
    """The factors (n,) that bring vectors of these norms down to at most ``limit``; 1 where they already are."""
    factors: np.ndarray = np.divide(limit, norms, out=np.ones_like(norms), where=norms > limit)
    return factors


def combine(weights: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """The sum of the updates times their weights: (n,) float64 and (n, d) to (d,) float32, summed in float64.

    Updates of weight zero are not read, so what stands in them cannot matter.
    """
    counted = np.flatnonzero(weights)
    total = np.zeros(deltas.shape[1], dtype=np.float32)
    buffer = np.empty((len(counted), BLOCK))
    with one_blas_thread():
        for columns in blocks_of(deltas):
            block = buffer[:, : columns.stop - columns.start]
            for place, row in enumerate(counted):
                block[place] = deltas[row, columns]
            total[columns] = weights[counted] @ block
    return total


def mix(matrix: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """Every row of a mixing matrix times the updates: (m, n) float64 and (n, d) to (m, d) float32."""
    mixed = scratch(len(matrix), deltas.shape[1])
    with one_blas_thread():
        for (columns, block), _ in zip(double_blocks(deltas), blocks_of(mixed), strict=True):
            mixed[:, columns] = matrix @ block
    return mixed
