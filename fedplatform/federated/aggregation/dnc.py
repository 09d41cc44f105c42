"""Divide and conquer: attackers who agree stand out along the direction of largest spread."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedplatform.core.coordinates import random_columns
from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.vectors import combine, gram_matrix, one_blas_thread
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_hospitals


def spectral_scores(gram: np.ndarray) -> np.ndarray:
    """Squared projections (n,) of centred vectors on their top right singular vector, from their Gram matrix (n, n)."""
    centred = gram - gram.mean(axis=0) - gram.mean(axis=1, keepdims=True) + gram.mean()
    with one_blas_thread():
        values, vectors = np.linalg.eigh(centred)
    scores: np.ndarray = values[-1] * vectors[:, -1] ** 2
    return scores


@dataclass(frozen=True)
class DnC(Aggregator):
    """Divide-and-conquer (Shejwalkar and Houmansadr, NDSS 2021): mean of those whom no draw of coordinates filters out.

    Each of ``iterations`` draws ``num_coordinates`` coordinates and drops the ``filter_factor`` times f updates that
    lie furthest along the main direction. Hostile is who was dropped in any draw. Where that is everybody the step and
    the weights are zero. Draws from ``Evidence.generator``. Raises ValueError unless n > 2f.

    >>> DnC(f=1)([[1.0, 1.0], [1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [-90.0, 90.0]]).delta
    array([1.5, 1.5], dtype=float32)
    """

    f: int
    filter_factor: float = 1.0
    num_coordinates: int = 10_000
    iterations: int = 5

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n, f = len(deltas), self.f
        require_hospitals(self, n=n, f=f, at_least=2 * f + 1, formula="n > 2f")
        dropped = math.ceil(self.filter_factor * f)
        hostile = np.zeros(n, dtype=bool)
        for _ in range(self.iterations):
            drawn = random_columns(deltas, self.num_coordinates, generator=evidence.generator)
            ranking = np.argsort(spectral_scores(gram_matrix(drawn)), kind="stable")
            hostile[ranking[max(n - dropped, 0) :]] = True
        weights = ~hostile / max(np.count_nonzero(~hostile), 1)
        return Aggregate(combine(weights, deltas), weights, hostile)
