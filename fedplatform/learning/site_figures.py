"""How good a model is at each site, and over all: a pooled figure alone may reward telling the sites apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedplatform.core.messages import NAN, Predictions
from fedplatform.core.tasks import answers_of, as_questions, counts_by_class, is_multilabel
from fedplatform.learning.metrics import area_of_finding, area_under_roc, calibration_error, mean_of_known

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
class FindingFigures:
    """One finding on a site's test scans, ``scans`` of which have it; the answer is yes above a probability of .5.

    NaN where all scans have it or none, and for the one of sensitivity and specificity that no scan tells of.
    """

    scans: int
    auc: Estimate
    balanced_accuracy: Estimate
    accuracy: float
    sensitivity: float
    specificity: float

    @property
    def is_judged(self) -> bool:
        """Whether some scans have it and some have not, so that it counts in the means."""
        return bool(np.isfinite(self.auc.value))


@dataclass(frozen=True)
class SiteFigures:
    """One site's test scans, or those of all sites together.

    ``sensitivity`` and ``specificity`` are of the second of two classes, at the answer of the larger probability; NaN
    for more classes. ``has_few`` says that a class has too few scans here to judge by. Where a scan has any number of
    findings, ``class_counts`` are the scans with each, ``findings`` has one entry for each, and AUC and balanced
    accuracy are the means over those that are judged.
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
    findings: tuple[FindingFigures, ...] = ()

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


def figures_by_subgroup(predictions: Sequence[Predictions]) -> dict[str, tuple[SiteFigures, ...]]:
    """The figures of each subgroup over all hospitals' test scans, by the name of the column (sex, age band, scanner).

    Intervals as in :func:`figures_by_site`, drawn within each site.
    """
    judged = [one for one in predictions if len(one.labels) and one.probabilities.shape[1]]
    names = dict.fromkeys(name for one in judged for name in one.subgroups)
    found = {}
    for name in names:
        told = [one for one in judged if name in one.subgroups]
        words = np.unique(np.concatenate([one.subgroups[name] for one in told]))
        found[name] = tuple(_figures(word, _of_subgroup(told, name, word)) for word in words.tolist())
    return found


def _of_subgroup(predictions: Sequence[Predictions], name: str, word: str) -> list[Predictions]:
    parts = []
    for one in predictions:
        here = one.subgroups[name] == word
        if here.any():
            kept = {"probabilities": one.probabilities[here], "labels": one.labels[here], "groups": one.groups[here]}
            parts.append(replace(one, **kept, subgroups={}))
    return parts


def _figures(site: str, predictions: Sequence[Predictions]) -> SiteFigures:
    probabilities = np.concatenate([one.probabilities for one in predictions]).astype(np.float64)
    labels = np.concatenate([one.labels for one in predictions])
    numbers, groups = [], 0
    for one in predictions:
        own = np.unique(one.groups, return_inverse=True)[1]
        numbers.append(own + groups)
        groups += int(own.max()) + 1
    strata = np.repeat(np.arange(len(predictions)), [len(one.labels) for one in predictions])
    weights = _bootstrap(np.concatenate(numbers), strata)
    num_classes = probabilities.shape[1]
    figures = _of_findings if is_multilabel(labels) else _of_classes
    balanced, auc, sensitivity, specificity, findings = figures(probabilities, labels, weights)
    return SiteFigures(
        site=site,
        scans=len(labels),
        groups=groups,
        class_counts=tuple(counts_by_class(labels, num_classes).tolist()),
        balanced_accuracy=balanced,
        auc=auc,
        sensitivity=sensitivity,
        specificity=specificity,
        calibration_error=calibration_error(*as_questions(probabilities, labels)),
        findings=findings,
    )


Parts = tuple[Estimate, Estimate, float, float, tuple[FindingFigures, ...]]


def _of_classes(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Parts:
    """Balanced accuracy, AUC, sensitivity and specificity where a scan has one class."""
    num_classes = probabilities.shape[1]
    right = answers_of(probabilities, multilabel=False) == labels
    recalls = np.stack([_recall(right, labels == label, weights) for label in range(num_classes)])
    recall = [_share(right[labels == label]) for label in range(num_classes)]
    scored = [1] if num_classes == 2 else range(num_classes)
    drawn = np.mean([_drawn_auc(probabilities[:, label], labels == label, weights) for label in scored], axis=0)
    return (
        _estimate(float(np.mean(recall)), recalls.mean(axis=0)),
        _estimate(area_under_roc(probabilities, labels), drawn),
        recall[1] if num_classes == 2 else NAN,
        recall[0] if num_classes == 2 else NAN,
        (),
    )


def _of_findings(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Parts:
    """The means over the findings, and each by itself, where a scan has any number of them."""
    answers = answers_of(probabilities, multilabel=True)
    each = [
        _of_finding(probabilities[:, one], labels[:, one] > 0, answers[:, one] > 0, weights)
        for one in range(labels.shape[1])
    ]
    judged = [(figures, areas, recalls) for figures, areas, recalls in each if figures.is_judged]
    means = [mean_of_known([figures.balanced_accuracy.value for figures, _, _ in judged])]
    means += [mean_of_known([figures.auc.value for figures, _, _ in judged])]
    # A draw without a rare finding tells of the others.
    drawn = [_mean_of_draws([recalls for _, _, recalls in judged], weights)]
    drawn += [_mean_of_draws([areas for _, areas, _ in judged], weights)]
    return _estimate(means[0], drawn[0]), _estimate(means[1], drawn[1]), NAN, NAN, tuple(one for one, _, _ in each)


def _of_finding(
    scores: np.ndarray, there: np.ndarray, said: np.ndarray, weights: np.ndarray
) -> tuple[FindingFigures, np.ndarray, np.ndarray]:
    """The figures of one finding, and its AUC and balanced accuracy in each draw."""
    right = said == there
    areas = _drawn_auc(scores, there, weights)
    recalls = (_recall(right, there, weights) + _recall(right, ~there, weights)) / 2
    sensitivity, specificity = _share(right[there]), _share(right[~there])
    return (
        FindingFigures(
            scans=int(there.sum()),
            auc=_estimate(area_of_finding(scores, there), areas),
            balanced_accuracy=_estimate((sensitivity + specificity) / 2, recalls),
            accuracy=_share(right),
            sensitivity=sensitivity,
            specificity=specificity,
        ),
        areas,
        recalls,
    )


def _share(right: np.ndarray) -> float:
    return float(right.mean()) if right.size else NAN


def _mean_of_draws(figures: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """The mean of several figures in each draw, (draws,), over those that it tells of; NaN where it tells of none."""
    if not figures:
        return np.full(len(weights), np.nan)
    table = np.stack(figures)
    known = np.isfinite(table)
    mean: np.ndarray = np.divide(
        np.where(known, table, 0).sum(axis=0),
        known.sum(axis=0),
        out=np.full(len(weights), np.nan),
        where=known.any(axis=0),
    )
    return mean


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
