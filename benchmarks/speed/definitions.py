"""Every rule by its definition in float64, from all pairwise differences: what results are held against."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

BLOCK = 1 << 16
Rows = np.ndarray


class Definitions:
    """The rules for one file of updates (n, d), taken a block of columns at a time."""

    def __init__(self, rows: Rows, *, f: int, radius: float) -> None:
        self._rows, self._f, self._radius = rows, f, radius
        self._rules: dict[str, Callable[[], Rows]] = {
            "mean": lambda: self._columns(lambda block: block.mean(axis=0)),
            "median": lambda: self._columns(lambda block: np.median(block, axis=0)),
            "trimmed_mean": lambda: self._columns(lambda block: np.sort(block, axis=0)[f : len(rows) - f].mean(axis=0)),
            "krum": lambda: self._rows[self._ranking[0]].astype(np.float64),
            "multi_krum": lambda: self._weighted(self._share(self._ranking[: len(rows) - f])),
            "geometric_median": self._geometric_median,
            "centered_clipping": lambda: self._weighted(np.minimum(1, radius / self._norms) / len(rows)),
            "fltrust": self._fltrust,
            "nnm": self._nnm,
        }

    def __call__(self, rule: str) -> Rows:
        return self._rules[rule]()

    def _blocks(self) -> list[Rows]:
        return [self._rows[:, start : start + BLOCK] for start in range(0, self._rows.shape[1], BLOCK)]

    def _columns(self, compute: Callable[[Rows], Rows]) -> Rows:
        return np.concatenate([compute(block.astype(np.float64)) for block in self._blocks()], axis=-1)

    def _weighted(self, weights: Rows) -> Rows:
        return self._columns(lambda block: weights @ block)

    def _share(self, members: Rows) -> Rows:
        weights = np.zeros(len(self._rows))
        weights[members] = 1 / len(members)
        return weights

    @cached_property
    def _norms(self) -> Rows:
        return np.sqrt(sum((block.astype(np.float64) ** 2).sum(axis=1) for block in self._blocks()))

    @cached_property
    def _distances(self) -> Rows:
        """Squared distances (n, n) by differences, no Gram matrix."""
        n = len(self._rows)
        distances = np.zeros((n, n))
        for block in self._blocks():
            wide = block.astype(np.float64)
            for i in range(n - 1):
                apart = wide[i + 1 :] - wide[i]
                distances[i, i + 1 :] += np.einsum("ij,ij->i", apart, apart)
        return distances + distances.T

    @cached_property
    def _ranking(self) -> Rows:
        neighbours = len(self._rows) - self._f - 2
        return np.sort(self._distances, axis=1)[:, 1 : 1 + neighbours].sum(axis=1).argsort(kind="stable")

    def _geometric_median(self) -> Rows:
        """Weiszfeld's iteration in the weights, from the mean, until it moves by less than 1e-8 of the way."""
        weights = np.full(len(self._rows), 1 / len(self._rows))
        point = self._weighted(weights)
        for _ in range(500):
            apart = np.zeros(len(self._rows))
            for start in range(0, len(point), BLOCK):
                some = slice(start, start + BLOCK)
                difference = self._rows[:, some] - point[some]
                apart += np.einsum("ij,ij->i", difference, difference)
            weights = 1 / np.sqrt(apart)
            moved = self._weighted(weights / weights.sum())
            if np.linalg.norm(moved - point) <= 1e-8 * np.linalg.norm(moved):
                return moved
            point = moved
        raise AssertionError("Weiszfeld's iteration did not stand after 500 steps")

    def _fltrust(self) -> Rows:
        products = sum(block.astype(np.float64) @ block[0].astype(np.float64) for block in self._blocks())
        trust = np.maximum(products / (self._norms * self._norms[0]), 0)
        return self._weighted(trust / trust.sum() * self._norms[0] / self._norms)

    def _nnm(self) -> Rows:
        near = self._distances.argsort(axis=1, kind="stable")[:, : len(self._rows) - self._f]
        return self._columns(lambda block: np.stack([self._share(some) for some in near]) @ block)
