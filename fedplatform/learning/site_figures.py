"""How good a model is at each site, and over all: a pooled figure alone may reward telling the sites apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedplatform.core.messages import NAN, Predictions
from fedplatform.learning.metrics import area_under_roc, calibration_error

DRAWS = 1000  # of the bootstrap; fewer where the scans are so many that chance leaves little open
MOST_NUMBERS = 2 * 10**7  # draws times scans
FEW = 30  # scans of a class below which a site gets no verdict
POOLED = "all sites"


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; NaN where there is nothing to tell."""

    value: float
    low: float = NAN
    high: float = NAN

    def named(self) -> tuple[tuple[str, float], ...]:
        """The value and the ends, each with what is put behind a column's name."""
        return ("", self.value), ("_low", self.low), ("_high", self.high)


@dataclass(frozen=True)
class SiteFigures:
    """One site's test scans, or those of all sites together.

    ``sensitivity`` and ``specificity`` are of the second of two classes, at the answer of the larger probability; NaN
    for more classes. ``has_few`` says that a class has too few scans here to judge by.
    """

    site: str
    scans: int
    groups: int
    class_counts: tuple[int, ...]
    balanced_accuracy: Estimate
    auc: Estimate
    sensitivity: float
    specificity: float
    calibration_error: float

    @property
    def has_few(self) -> bool:
        """Whether some class has fewer than :data:`FEW` scans here."""
        return min(self.class_counts) < FEW


def figures_by_site(predictions: Sequence[Predictions]) -> tuple[SiteFigures, ...]:
    """The figures of each hospital that answered for scans of its own, then of all together where they are several.

    Intervals are percentiles of a bootstrap over groups (patients), drawn within each site and the same every time.
    """
    judged = [one for one in predictions if len(one.labels) and one.probabilities.shape[1]]
    sites = [_figures(one.hospital_id, [one]) for one in judged]
    return tuple([*sites, _figures(POOLED, judged)] if len(sites) > 1 else sites)


def _figures(site: str, predictions: Sequence[Predictions]) -> SiteFigures:
    probabilities = np.concatenate([one.probabilities for one in predictions]).astype(np.float64)
    labels = np.concatenate([one.labels for one in predictions])
    numbers, groups = [], 0
    for one in predictions:
        own = np.unique(one.groups, return_inverse=True)[1]
        numbers.append(own + groups)
        groups += int(own.max()) + 1
    strata = np.repeat(np.arange(len(predictions)), [len(one.labels) for one in predictions])
    num_classes = probabilities.shape[1]
    right = probabilities.argmax(axis=1) == labels
    weights = _bootstrap(np.concatenate(numbers), strata)
    recalls = np.stack([_recall(right, labels == label, weights) for label in range(num_classes)])
    recall = [float(right[labels == label].mean()) if (labels == label).any() else NAN for label in range(num_classes)]
    scored = [1] if num_classes == 2 else range(num_classes)
    drawn = np.mean([_drawn_auc(probabilities[:, label], labels == label, weights) for label in scored], axis=0)
    return SiteFigures(
        site=site,
        scans=len(labels),
        groups=groups,
        class_counts=tuple(np.bincount(labels, minlength=num_classes).tolist()),
        balanced_accuracy=_estimate(float(np.mean(recall)), recalls.mean(axis=0)),
        auc=_estimate(area_under_roc(probabilities, labels), drawn),
        sensitivity=recall[1] if num_classes == 2 else NAN,
        specificity=recall[0] if num_classes == 2 else NAN,
        calibration_error=calibration_error(probabilities, labels),
    )


def _bootstrap(groups: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """How often each scan is drawn, (draws, n): whole groups with replacement, as many as a stratum has."""
    generator = np.random.default_rng(0)
    draws = int(np.clip(MOST_NUMBERS // len(groups), 100, DRAWS))
    drawn = np.zeros((draws, int(groups.max()) + 1), np.float64)
    for stratum in np.unique(strata):
        members = np.unique(groups[strata == stratum])
        drawn[:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    weights: np.ndarray = drawn[:, groups]
    return weights


def _recall(right: np.ndarray, of_class: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share of a class that is answered rightly in each draw, NaN where the draw has none of it."""
    total = weights[:, of_class].sum(axis=1)
    hits = weights[:, of_class & right].sum(axis=1)
    share: np.ndarray = np.divide(hits, total, out=np.full(len(weights), np.nan), where=total > 0)
    return share


def _drawn_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The AUC of each draw: the weight of pairs in the right order, a tie counting half; NaN without both classes."""
    order = np.argsort(scores, kind="stable")
    of_value = np.unique(scores[order], return_inverse=True)[1]
    starts = np.flatnonzero(np.diff(of_value, prepend=-1))
    up = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    down = np.add.reduceat(weights[:, order] * ~positive[order], starts, axis=1)
    below = np.cumsum(down, axis=1) - down
    pairs = (up * (below + 0.5 * down)).sum(axis=1)
    total = up.sum(axis=1) * down.sum(axis=1)
    area: np.ndarray = np.divide(pairs, total, out=np.full(len(weights), np.nan), where=total > 0)
    return area


def _estimate(value: float, drawn: np.ndarray) -> Estimate:
    known = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or len(known) < len(drawn) // 2:
        return Estimate(value)
    low, high = np.quantile(known, [0.025, 0.975])
    return Estimate(value, float(low), float(high))
