"""Mean, spread and inner products of the honest updates: what every colluding attacker computes before it forges one.

Everything is summed row by row or in column chunks, in float64 and in one fixed order: the answer does not depend on
the number of threads, and no second (h, d) array is ever made.
"""

from __future__ import annotations

import numpy as np
import torch

from fedplatform.core.vectors import column_blocks, one_blas_thread

_CHUNK = 16_384


def mean_of(honest: torch.Tensor) -> torch.Tensor:
    """Mean (d,) float64 of the honest updates (h, d)."""
    total = torch.zeros(honest.shape[1], dtype=torch.float64)
    for row in honest:
        total += row
    return total / len(honest)


def std_of(honest: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Standard deviation (d,) float64 of each coordinate over the hospitals, unbiased (divided by h - 1)."""
    total = torch.zeros_like(mean)
    for row in honest:
        total += (row - mean).square_()
    return (total / (len(honest) - 1)).sqrt_()


def gram_of(honest: torch.Tensor, mean: torch.Tensor) -> np.ndarray:
    """Inner products (h, h) float64 of the centred updates, ``<g_i - mean, g_j - mean>``."""
    gram = np.zeros((len(honest), len(honest)))
    for start in range(0, len(mean), _CHUNK):
        columns = slice(start, start + _CHUNK)
        centred = (honest[:, columns] - mean[columns]).numpy()
        # Not a matrix product: BLAS sums in another order on another number of threads.
        gram += np.einsum("ic,jc->ij", centred, centred)
    return gram


def dot(left: torch.Tensor, right: torch.Tensor) -> float:
    """Inner product of two (d,) float64 vectors, summed in one order on any number of threads."""
    return float(np.einsum("d,d->", left.numpy(), right.numpy()))


def products_of(left: torch.Tensor, right: torch.Tensor) -> np.ndarray:
    """Inner products (m, h) float64 of the rows of two sets of vectors, (m, d) and (h, d)."""
    products = np.zeros((len(left), len(right)))
    with one_blas_thread():
        for columns in column_blocks(left.shape[1]):
            products += left[:, columns].double().numpy() @ right[:, columns].double().numpy().T
    return products
