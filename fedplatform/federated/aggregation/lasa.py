"""LASA: each layer is judged by itself, on the entries that matter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.core.messages import Aggregate, Evidence, Layer
from fedplatform.core.vectors import blocks_of, shrinkage, squared_norms
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_layers, require_updates
from fedplatform.federated.aggregation.median_scores import median_scores


@dataclass(frozen=True)
class LASA(Aggregator):
    """LASA (Xu et al., WACV 2025): sparsified updates, and in each layer the mean of whoever looks usual there.

    Updates are clipped to the median norm. Of the matrices and kernels of each, taken together, the smallest
    ``sparsity`` of the entries becomes zero; biases stay. In a layer, a hospital counts where its norm and its share of
    positive signs lie less than ``norm_limit`` and ``sign_limit`` median-based z-scores off; where nobody does,
    everybody counts. A hospital's weight is its share over all coordinates, and hostile is who counts in no layer.
    Raises ValueError for n = 0, where ``Evidence.layers`` do not make up the update, and when it is made, unless
    0 <= sparsity < 1 and the limits are positive.

    >>> from dataclasses import replace
    >>> from fedplatform.core.messages import Layer
    >>> from fedplatform.federated.aggregation import default_evidence
    >>> updates = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [-1.0, -2.0]], np.float32)
    >>> told = replace(default_evidence(updates), layers=(Layer("bias", (2,)),))
    >>> LASA()(updates, told).delta
    array([1., 2.], dtype=float32)
    """

    sparsity: float = 0.3
    norm_limit: float = 2.0
    sign_limit: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"LASA needs 0 <= sparsity < 1, got sparsity={self.sparsity}")
        if not (self.norm_limit > 0 and self.sign_limit > 0):
            raise ValueError(f"LASA needs limits > 0, got {self.norm_limit} and {self.sign_limit}")

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n, d = deltas.shape
        require_updates(self, n)
        require_layers(self, evidence.layers, d=d)
        norms = np.sqrt(squared_norms(deltas))
        factors = shrinkage(norms, float(np.median(norms)))
        places = places_of(evidence.layers)
        floors = np.array([self._floor(row, evidence.layers) for row in deltas])
        step, weights = np.empty(d, np.float32), np.zeros(n)
        for layer, columns in zip(evidence.layers, places, strict=True):
            cut = floors if len(layer.shape) > 1 else np.full(n, -np.inf)
            squares, purity = _measured(deltas[:, columns], cut)
            usual = median_scores(factors * np.sqrt(squares)) < self.norm_limit
            usual &= median_scores(purity) < self.sign_limit
            counted = usual if usual.any() else np.ones(n, bool)
            _add_up(deltas[:, columns], np.where(counted, factors, 0) / counted.sum(), cut, out=step[columns])
            weights += counted / counted.sum() * layer.size / d
        return Aggregate(step, weights, weights == 0)

    def _floor(self, row: np.ndarray, layers: tuple[Layer, ...]) -> float:
        """The magnitude above which an entry of one update's matrices and kernels is kept."""
        parts = [row[columns] for layer, columns in zip(layers, places_of(layers), strict=True) if len(layer.shape) > 1]
        size = sum(part.size for part in parts)
        dropped = size - int(size * (1 - self.sparsity))
        if not dropped:
            return -np.inf
        return float(np.partition(np.abs(np.concatenate(parts)), dropped - 1)[dropped - 1])


def places_of(layers: tuple[Layer, ...]) -> tuple[slice, ...]:
    """The columns of each layer."""
    ends = np.cumsum([layer.size for layer in layers])
    return tuple(slice(int(end) - layer.size, int(end)) for layer, end in zip(layers, ends, strict=True))


def _measured(part: np.ndarray, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared norms (n,), and shares (n,) of positive among non-zero signs, of the entries whose magnitude is above."""
    squares, signs, filled = np.zeros(len(part)), np.zeros(len(part)), np.zeros(len(part))
    for columns in blocks_of(part):
        block = part[:, columns].astype(np.float64)
        block[np.abs(block) <= cut[:, None]] = 0
        squares += np.einsum("ij,ij->i", block, block)
        signs += np.sign(block).sum(axis=1)
        filled += np.count_nonzero(block, axis=1)
    return squares, 0.5 * (1 + np.divide(signs, filled, out=np.zeros_like(signs), where=filled > 0))


def _add_up(part: np.ndarray, weights: np.ndarray, cut: np.ndarray, *, out: np.ndarray) -> None:
    """The sum of the entries whose magnitude is above, times the weights (n,), into ``out``."""
    for columns in blocks_of(part):
        block = part[:, columns].astype(np.float64)
        block[np.abs(block) <= cut[:, None]] = 0
        out[columns] = np.einsum("i,ij->j", weights, block)
