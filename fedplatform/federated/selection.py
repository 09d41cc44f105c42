"""Which of the models of all rounds is kept: an average over the rounds, the best on validation scans, when to stop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.learning.metrics import Figures

Score = tuple[float, float]  # the larger the better: balanced accuracy, then the loss with its sign turned


@dataclass(frozen=True, eq=False)
class Best:
    """The model of the round that did best on all honest hospitals' validation scans: ``weights`` (d,)."""

    round_number: int
    score: Score
    weights: np.ndarray


def score_of(validation: Figures) -> Score | None:
    """How good a round is: balanced accuracy over the classes that are there, of equal ones the smaller loss.

    None where nothing was judged, or an answer is no number. A network that names no class is judged by its loss.
    """
    if not np.isfinite(validation.loss):
        return None
    counts = validation.confusion.sum(axis=1)
    there = counts > 0
    right = np.diag(validation.confusion)[there] / counts[there]
    return (float(right.mean()) if there.any() else 0.0), -validation.loss


def better(best: Best | None, validation: Figures, *, round_number: int, weights: np.ndarray) -> Best | None:
    """The best so far with one round more; of equal ones the earlier stays."""
    score = score_of(validation)
    if score is None or (best is not None and score <= best.score):
        return best
    return Best(round_number, score, weights)


def moving_average(before: np.ndarray | None, weights: np.ndarray, *, decay: float, rounds: int) -> np.ndarray:
    """The exponential moving average (d,) over the global models of ``rounds`` rounds, the newest ``weights`` (d,).

    A model counts ``decay`` times as much as the one after it, and the shares sum to 1 from the first round on, so that
    the model before the first round has none.

    >>> first = moving_average(None, np.float32([1.0]), decay=0.5, rounds=1)
    >>> moving_average(first, np.float32([4.0]), decay=0.5, rounds=2).tolist()
    [3.0]
    """
    if before is None:
        return weights.copy()
    share = np.float32((1 - decay) / (1 - decay**rounds))
    average: np.ndarray = before + share * (weights - before)
    return average
