"""FLAME: cluster by direction, clip to the median norm, blur what is left with noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.vectors import combine, cosines_from, gram_matrix, shrinkage
from fedplatform.federated.aggregation.aggregator import Aggregator


def majority_cluster(distances: np.ndarray) -> np.ndarray:
    """Members (n,) bool of the first more than half of the points to be linked as a distance grows, from (n, n).

    Everybody where HDBSCAN sees no such set, which is how it answers when all points are one.
    """
    from sklearn.cluster import HDBSCAN  # as slow to import as torch, and only this rule needs it

    labels = HDBSCAN(
        metric="precomputed",
        min_cluster_size=len(distances) // 2 + 1,
        min_samples=1,
        allow_single_cluster=True,
        copy=True,
    ).fit_predict(distances)
    members: np.ndarray = labels == labels.max()
    return members


@dataclass(frozen=True)
class FLAME(Aggregator):
    """FLAME (Nguyen et al., USENIX Security 2022): mean of the majority cluster, clipped, plus noise.

    Clusters by the cosine distance of the updates (the paper: of the models, which a rule does not see) and clips to
    the median norm. The noise, against what a backdoor leaves behind, is Gaussian with standard deviation ``noise``
    times the median norm in *every* coordinate; the default is the paper's for images. Its own norm is
    ``noise * sqrt(d)`` median norms, so beyond a million parameters it outweighs the step: set it smaller there, or 0
    to leave it out. Hostile is who lies outside the cluster, often an honest hospital unlike the others; weights are
    shares of the mean. Draws from ``Evidence.generator``. Raises ValueError unless n >= 2, and when it is made, for
    noise < 0.

    >>> FLAME(noise=0.0)([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [-30.0, -40.0]]).delta
    array([3., 4.], dtype=float32)
    """

    noise: float = 0.001

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise ValueError(f"FLAME needs noise >= 0, got noise={self.noise}")

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n, d = deltas.shape
        if n < 2:
            raise ValueError(f"FLAME needs n >= 2, got n={n}")
        gram = gram_matrix(deltas)
        norms = np.sqrt(np.diag(gram))
        median = float(np.median(norms))
        admitted = majority_cluster(1.0 - cosines_from(gram))
        weights = admitted / np.count_nonzero(admitted)
        step = combine(weights * shrinkage(norms, median), deltas)
        step += self.noise * median * torch.randn(d, generator=evidence.generator).numpy()
        return Aggregate(step, weights, ~admitted)
