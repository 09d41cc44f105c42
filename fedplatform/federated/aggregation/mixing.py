"""Mixing: pull the updates of honest but unlike hospitals together before a rule judges them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import numpy as np
import torch

from fedplatform.core.mapped import scratch
from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.vectors import (
    blocks_of,
    distances_from,
    gram_matrix,
    mix,
    one_blas_thread,
    shrinkage,
    squared_norms,
)
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_hospitals, require_updates


@runtime_checkable
class Mixer(Protocol):
    """Turns n updates (n, d) into m mixed ones (m, d), and says how: a non-negative matrix (m, n) float64.

    The mixed updates are that matrix times the updates.
    """

    def __call__(self, deltas: np.ndarray, evidence: Evidence) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class NearestNeighbourMixing:
    """NNM (Allouah et al., AISTATS 2023): each update becomes the mean of its n - f nearest, itself among them.

    Updates (n, d) become (n, d). Raises ValueError unless n > 2f.

    >>> from fedplatform.federated.aggregation import default_evidence
    >>> updates = np.array([[0.0], [2.0], [100.0]], np.float32)
    >>> mixed, matrix = NearestNeighbourMixing(f=1)(updates, default_evidence(updates))
    >>> mixed.tolist()
    [[1.0], [1.0], [51.0]]
    >>> matrix[0].tolist()
    [0.5, 0.5, 0.0]
    """

    f: int

    def __call__(self, deltas: np.ndarray, evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
        n, f = len(deltas), self.f
        require_hospitals(self, n=n, f=f, at_least=2 * f + 1, formula="n > 2f")
        distances = distances_from(gram_matrix(deltas))
        np.fill_diagonal(distances, -1.0)  # nearest to itself even where another hospital sent the same
        nearest = np.argsort(distances, axis=1, kind="stable")[:, : n - f]
        matrix = np.zeros((n, n))
        np.put_along_axis(matrix, nearest, 1 / (n - f), axis=1)
        return mix(matrix, deltas), matrix


@dataclass(frozen=True)
class Bucketing:
    """Bucketing (Karimireddy et al., ICLR 2022): means of random buckets of ``size`` updates; the last may hold fewer.

    The rule behind it sees ceil(n / size) updates, of which f attackers may still spoil f: its f stays, its n shrinks.
    Draws from ``Evidence.generator``. Raises ValueError for n = 0, and when it is made, for size < 1.

    >>> from fedplatform.federated.aggregation import default_evidence
    >>> updates = np.array([[1.0], [2.0], [3.0], [4.0]], np.float32)
    >>> mixed, matrix = Bucketing(size=2)(updates, default_evidence(updates))
    >>> mixed.shape, float(mixed.mean())
    ((2, 1), 2.5)
    """

    size: int = 2

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"Bucketing needs size >= 1, got size={self.size}")

    def __call__(self, deltas: np.ndarray, evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
        n = len(deltas)
        require_updates(self, n)
        order = torch.randperm(n, generator=evidence.generator).numpy()
        buckets = [order[start : start + self.size] for start in range(0, n, self.size)]
        matrix = np.zeros((len(buckets), n))
        for row, members in zip(matrix, buckets, strict=True):
            row[members] = 1 / len(members)
        return mix(matrix, deltas), matrix


@dataclass(frozen=True)
class NormClipping:
    """Norm clipping (Sun et al., 2019): no update longer than the median one, so scaling buys nothing.

    g_i <- g_i min(1, median ||g|| / ||g_i||), (n, d) to (n, d). Raises ValueError for n = 0.

    >>> from fedplatform.federated.aggregation import default_evidence
    >>> updates = np.array([[1.0], [2.0], [-80.0]], np.float32)
    >>> NormClipping()(updates, default_evidence(updates))[0].tolist()
    [[1.0], [2.0], [-2.0]]
    """

    def __call__(self, deltas: np.ndarray, evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
        require_updates(self, len(deltas))
        norms = np.sqrt(squared_norms(deltas))
        factors = shrinkage(norms, float(np.median(norms)))
        clipped, short = scratch(*deltas.shape), factors.astype(np.float32)[:, None]
        for columns, _ in zip(blocks_of(deltas), blocks_of(clipped), strict=True):
            np.multiply(deltas[:, columns], short, out=clipped[:, columns])
        return clipped, np.diag(factors)


@dataclass(frozen=True)
class Mixed(Aggregator):
    """A rule behind one or more mixers (Karimireddy et al., 2022; Allouah et al., 2023), which are applied in order.

    The rule sees mixed updates as if they were hospitals. A mixed update claims the examples that its members claim
    together; ``root_delta`` and ``previous_delta`` are directions, and no mixing changes them. Its weights come back to
    the hospitals through the mixing matrix (rescaled to sum to 1 where clipping shortened them), and a hospital is
    hostile if every mixed update it went into was shut out. Raises ValueError where a mixer or the rule does.

    >>> from fedplatform.federated.aggregation.mean import Mean
    >>> Mixed((NormClipping(),), Mean())([[1.0], [2.0], [-80.0]]).delta.round(3)
    array([0.333], dtype=float32)
    """

    mixers: tuple[Mixer, ...]
    rule: Aggregator

    @property
    def needs_root(self) -> bool:  # type: ignore[override]  # of an object and not of the class
        """Whether the rule behind compares with the server's own update."""
        return self.rule.needs_root

    def without(self, attack: str) -> Self:
        """The same with the rule behind never taught this attack."""
        return replace(self, rule=self.rule.without(attack))

    def expecting(self, refused: int) -> Self:
        """The same with every f, of the mixers and of the rule behind, so much smaller."""
        mixers = tuple(
            replace(mixer, f=max(mixer.f - refused, 0)) if isinstance(mixer, NearestNeighbourMixing) else mixer
            for mixer in self.mixers
        )
        return replace(self, mixers=mixers, rule=self.rule.expecting(refused))

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        mixed, behind = deltas, evidence
        matrix = np.eye(len(deltas))
        for mixer in self.mixers:
            mixed, mixing = mixer(mixed, behind)
            behind = _as_seen_through(mixing, behind)
            with one_blas_thread():
                matrix = mixing @ matrix
        aggregate = self.rule.aggregate(mixed, behind)
        with one_blas_thread():
            weights = aggregate.weights @ matrix
        total = weights.sum()
        member = matrix > 0
        shut_out = (~member | aggregate.hostile[:, None]).all(axis=0) & member.any(axis=0)
        return Aggregate(aggregate.delta, weights / total if total > 0 else weights, shut_out)


def _as_seen_through(mixing: np.ndarray, evidence: Evidence) -> Evidence:
    member = mixing > 0
    return replace(
        evidence,
        hospital_ids=tuple("+".join(evidence.hospital_ids[j] for j in np.flatnonzero(row)) for row in member),
        num_examples=member.astype(np.int64) @ evidence.num_examples,
    )
