"""DeepSight: what an update changes in the last layer tells what labels it was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.vectors import combine, cosines_from, shrinkage, squared_norms
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_layers

LEAST_SHARE = 0.01  # of the largest energy: a class with less was hardly trained on


@dataclass(frozen=True)
class DeepSight(Aggregator):
    """DeepSight (Rieger et al., NDSS 2022): clusters of hospitals with alike last layers vote by how narrow they are.

    The energy of a class is what an update changes in its row of the last layer, weights and bias; squared and brought
    to the sum 1, it is the profile of the hospital's labels. A hospital in whose profile few classes count, at most
    half of the median number, is suspicious. Hospitals are clustered (HDBSCAN, ``smallest`` members at least) by
    profile and by the direction of the bias, and then by how often both agree; a cluster is admitted where less than
    ``tolerated`` of it is suspicious. What is admitted is clipped to the median norm of all; hostile is everybody else.
    Where that is everybody, the step and the weights are zero. The paper's third measure, how each model answers to
    random inputs, is left out: a rule sees no network. Raises ValueError unless n >= 2, where ``Evidence.layers`` do
    not end with a matrix (classes, features) and its bias, and when it is made, unless smallest >= 2 and
    0 < tolerated <= 1.

    >>> from dataclasses import replace
    >>> from fedplatform.core.messages import Layer
    >>> from fedplatform.federated.aggregation import default_evidence
    >>> updates = np.array([[1, 1, 1, 1]] * 6 + [[9, 0, 9, 0]] * 3, np.float32)
    >>> last = (Layer("weight", (2, 1)), Layer("bias", (2,)))
    >>> DeepSight()(updates, replace(default_evidence(updates), layers=last)).hostile.tolist()
    [False, False, False, False, False, False, True, True, True]
    """

    smallest: int = 3
    tolerated: float = 1 / 3

    def __post_init__(self) -> None:
        if self.smallest < 2:
            raise ValueError(f"DeepSight needs smallest >= 2, got smallest={self.smallest}")
        if not 0 < self.tolerated <= 1:
            raise ValueError(f"DeepSight needs 0 < tolerated <= 1, got tolerated={self.tolerated}")

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n, d = deltas.shape
        if n < 2:
            raise ValueError(f"DeepSight needs n >= 2, got n={n}")
        require_layers(self, evidence.layers, d=d)
        profiles, biases = last_layer(deltas, evidence)
        suspicious = is_narrow(profiles)
        # HDBSCAN breaks ties by order, and this one must not depend on how the hospitals stand.
        order = np.lexsort(np.concatenate([profiles, biases], axis=1).T)
        clusters = np.empty(n, np.int64)
        clusters[order] = self._clusters(profiles[order], biases[order])
        admitted = np.zeros(n, bool)
        for cluster in set(clusters[clusters >= 0].tolist()):
            members = clusters == cluster
            if suspicious[members].mean() < self.tolerated:
                admitted |= members
        norms = np.sqrt(squared_norms(deltas))
        weights = admitted / max(np.count_nonzero(admitted), 1)
        step = combine(weights * shrinkage(norms, float(np.median(norms))), deltas)
        return Aggregate(step, weights, ~admitted)

    def _clusters(self, profiles: np.ndarray, biases: np.ndarray) -> np.ndarray:
        """The cluster (n,) of each hospital, -1 for none, from two clusterings that are asked together."""
        between = np.linalg.norm(profiles[:, None] - profiles[None], axis=2)
        opposed = 1 - cosines_from(biases @ biases.T)
        apart = [labels[:, None] != labels for labels in (self._labels(between), self._labels(opposed))]
        return self._labels(np.mean(apart, axis=0), one_is_enough=True)

    def _labels(self, distances: np.ndarray, *, one_is_enough: bool = False) -> np.ndarray:
        from sklearn.cluster import HDBSCAN  # as slow to import as torch, and only few rules need it

        found: np.ndarray = HDBSCAN(
            metric="precomputed",
            min_cluster_size=min(self.smallest, len(distances)),
            min_samples=min(self.smallest, len(distances)),
            allow_single_cluster=one_is_enough,
            copy=True,
        ).fit_predict(distances)
        return found


def last_layer(deltas: np.ndarray, evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """The profiles (n, classes) and the changes of the bias (n, classes), float64, of the last layer.

    Raises ValueError where the last two layers are no matrix with its bias.
    """
    shapes = [layer.shape for layer in evidence.layers[-2:]]
    if len(shapes) < 2 or len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
        raise ValueError(f"DeepSight needs a last layer (classes, features) with a bias (classes,), got {shapes}")
    (classes, features), n = shapes[0], len(deltas)
    start = deltas.shape[1] - classes * (features + 1)
    matrix = deltas[:, start : start + classes * features].astype(np.float64).reshape(n, classes, features)
    biases = deltas[:, start + classes * features :].astype(np.float64)
    energy = (np.abs(matrix).sum(axis=2) + np.abs(biases)) ** 2
    total = energy.sum(axis=1, keepdims=True)
    return np.divide(energy, total, out=np.full_like(energy, 1 / classes), where=total > 0), biases


def is_narrow(profiles: np.ndarray) -> np.ndarray:
    """Whose profile (n, classes) has at most half as many classes that count as the median one: (n,) bool."""
    threshold = max(LEAST_SHARE, 1 / profiles.shape[1]) * profiles.max(axis=1, keepdims=True)
    counting = (profiles > threshold).sum(axis=1)
    narrow: np.ndarray = counting <= np.median(counting) / 2
    return narrow
