"""FLDetector: whose updates cannot be foretold from those of the round before."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch

from fedplatform.core.coordinates import row_blocks
from fedplatform.core.mapped import scratch
from fedplatform.core.messages import Aggregate, Evidence
from fedplatform.core.vectors import combine, double_blocks, gram_matrix
from fedplatform.federated.aggregation.aggregator import Aggregator
from fedplatform.federated.aggregation.feasibility import require_updates

REFERENCES = 10  # uniform samples that the gap statistic compares with
MOST_CLUSTERS = 7
SMALLEST = 1e-12  # of a sum of squares whose logarithm is taken


@dataclass(frozen=True)
class DetectorMemory:
    """The last round's updates by hospital, the server's last steps, and each hospital's last errors."""

    updates: dict[str, np.ndarray] = field(default_factory=dict)
    steps: tuple[np.ndarray, ...] = ()
    errors: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class FLDetector(Aggregator):
    """FLDetector (Zhang et al., KDD 2022): the mean without those whose updates do not follow from their last ones.

    An update is foretold as the hospital's last one plus the Hessian times the model's last step, the Hessian by L-BFGS
    from the server's last ``window`` steps. The error of a hospital, as a share of everybody's, averaged over
    ``window`` rounds, is its suspicion. Where the gap statistic finds more than one cluster of suspicions, the higher
    of two (2-means) is hostile. The first foretold round is the third, and until then everybody counts. The paper
    begins again without those it found; here they do not count in the round. It remembers n updates and ``window`` + 1
    steps, takes the aggregate for the model's step, and judges no hospital that took no part in the round before. Draws
    from ``Evidence.generator``. Raises ValueError for n = 0, and when it is made, for window < 1.

    >>> FLDetector()([[1.0], [3.0]]).delta
    array([2.], dtype=float32)
    """

    memory_kinds: ClassVar[tuple[type, ...]] = (DetectorMemory,)

    window: int = 10

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"FLDetector needs window >= 1, got window={self.window}")

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        n = len(deltas)
        require_updates(self, n)
        memory = evidence.memory if isinstance(evidence.memory, DetectorMemory) else DetectorMemory()
        known = np.array([name in memory.updates for name in evidence.hospital_ids])
        hostile = np.zeros(n, bool)
        if len(memory.steps) > 1 and np.count_nonzero(known) > 2:
            memory = self._with_errors(memory, deltas, evidence, known)
            names = [name for name, is_known in zip(evidence.hospital_ids, known, strict=True) if is_known]
            suspicion = np.array([np.mean(memory.errors[name]) for name in names])
            if clusters_of(suspicion, generator=evidence.generator) > 1:
                hostile[np.flatnonzero(known)] = split(suspicion, 2) == 1
        weights = ~hostile / np.count_nonzero(~hostile)
        step = combine(weights, deltas)
        kept = scratch(*deltas.shape)
        for rows in row_blocks(deltas):
            kept[rows] = deltas[rows]
        updates = dict(zip(evidence.hospital_ids, kept, strict=True))
        steps = (*memory.steps, step)[-(self.window + 1) :]
        return Aggregate(step, weights, hostile, memory=replace(memory, updates=updates, steps=steps))

    def _with_errors(
        self, memory: DetectorMemory, deltas: np.ndarray, evidence: Evidence, known: np.ndarray
    ) -> DetectorMemory:
        """The memory with this round's errors beside the earlier ones."""
        shares = foretold_turn(gram_matrix(np.stack(memory.steps)))
        names = [name for name, is_known in zip(evidence.hospital_ids, known, strict=True) if is_known]
        squares = np.zeros(len(names))
        rows = np.flatnonzero(known)
        for columns, block in double_blocks(deltas):
            turn = sum(
                share * step[columns].astype(np.float64) for share, step in zip(shares, memory.steps, strict=True)
            )
            for place, (row, name) in enumerate(zip(rows, names, strict=True)):
                error = block[row] - memory.updates[name][columns] - turn
                squares[place] += error @ error
        errors = np.sqrt(squares)
        errors = errors / errors.sum() if errors.any() else errors
        kept = {
            name: (*memory.errors.get(name, ()), float(error))[-self.window :]
            for name, error in zip(names, errors, strict=True)
        }
        return replace(memory, errors=memory.errors | kept)


def foretold_turn(gram: np.ndarray) -> np.ndarray:
    """The Hessian times the last step, by L-BFGS, as shares (m,) of m >= 2 steps with the Gram matrix (m, m).

    A step of the server moves the model, and the next step minus it is how the gradient turned: S are the steps but the
    last, Y the differences to the next ones, v the last step. All of them, and so the answer
    sigma v - [sigma S, Y] M^-1 [sigma S'v; Y'v] (Byrd et al., 1994), are combinations of steps.
    """
    m = len(gram)
    moves, last = np.eye(m)[:-1], np.eye(m)[-1]
    turns = np.eye(m)[1:] - moves
    length = moves[-1] @ gram @ moves[-1]
    if not length > 0:
        return np.zeros(m)
    sigma = turns[-1] @ gram @ moves[-1] / length
    products = moves @ gram @ turns.T
    lower = np.tril(products, -1)
    middle = np.block([[sigma * (moves @ gram @ moves.T), lower], [lower.T, -np.diag(np.diag(products))]])
    both = np.concatenate([sigma * moves, turns])
    answer: np.ndarray = sigma * last - both.T @ (np.linalg.pinv(middle, hermitian=True) @ (both @ gram @ last))
    return answer


def split(values: np.ndarray, count: int) -> np.ndarray:
    """The cluster (n,) of each value, from 0 for the lowest, in ``count`` of least summed squares: exact k-means."""
    order = np.argsort(values, kind="stable")
    cuts, _ = _best_cuts(values[order], count)
    labels = np.empty(len(values), np.int64)
    labels[order] = np.searchsorted(cuts, np.arange(len(values)), side="right")
    return labels


def clusters_of(values: np.ndarray, *, generator: torch.Generator) -> int:
    """How many clusters n values form, by the gap statistic (Tibshirani et al., JRSS B 2001) against uniform ones."""
    n, spread = len(values), float(np.ptp(values))
    most = min(MOST_CLUSTERS, n - 1)
    if spread <= 1e-9 * np.abs(values).max():
        return 1
    own = _log_spreads((values - values.min()) / spread, most)
    drawn = torch.rand(REFERENCES, n, generator=generator, dtype=torch.float64).numpy()
    others = np.array([_log_spreads(row, most) for row in drawn])
    gaps, errors = others.mean(axis=0) - own, others.std(axis=0) * np.sqrt(1 + 1 / REFERENCES)
    enough = gaps[:-1] >= gaps[1:] - errors[1:]
    return int(enough.argmax()) + 1 if enough.any() else most


def _log_spreads(values: np.ndarray, most: int) -> np.ndarray:
    """The logarithm of the summed squares within 1 to ``most`` clusters: (most,)."""
    ordered = np.sort(values)
    return np.log(np.maximum([_best_cuts(ordered, count)[1] for count in range(1, most + 1)], SMALLEST))


def _best_cuts(ordered: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Where ascending values are best cut into clusters (count - 1,), and the summed squares within; exact."""
    n = len(ordered)
    sums, squares = np.append(0.0, ordered.cumsum()), np.append(0.0, (ordered**2).cumsum())
    starts, ends = np.arange(n + 1)[:, None], np.arange(n + 1)[None, :]
    size = np.maximum(ends - starts, 1)
    within = np.maximum(squares[None, :] - squares[:, None] - (sums[None, :] - sums[:, None]) ** 2 / size, 0.0)
    within[ends <= starts] = np.inf
    best, came_from = within[0], []
    for _ in range(count - 1):
        through = best[:, None] + within
        came_from.append(through.argmin(axis=0))
        best = through.min(axis=0)
    cuts, end = [], n
    for origins in reversed(came_from):
        end = int(origins[end])
        cuts.append(end)
    return np.array(cuts[::-1], np.int64), float(best[n])
