"""What is fitted to clean validation scans: temperature, threshold, fusion of scores, depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

LOG_TEMPERATURES = np.linspace(-3, 3, 61)  # the range in which the temperature is looked for
TAIL = 0.95  # the quantile by which Fusion measures the upper half of a score
TAIL_DEVIATIONS = 1.6449  # where it lies in a normal distribution
NARROWEST = 1e-6  # the least distance between the ends of a DepthMap


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor, groups: np.ndarray) -> float:
    """The temperature T by which logits (n, k) are divided to be calibrated (Guo et al., ICML 2017).

    Minimises the cross-entropy over log T in [-3, 3], with a standard normal prior on log T. A group of ``groups`` (n,)
    counts as one scan, for all slices of a patient are answered rightly or wrongly together: thirty of them are not
    thirty reasons to look certain. Few scans, all answered rightly, would else ask for the lowest temperature there
    is. With many groups the prior does not matter; with none the answer is 1.
    """
    from scipy import optimize  # slow to import, and who trains imports this module, too

    # On the host: the search asks for one number after the other, and a GPU would be waited for each time.
    logits, labels = logits.detach().cpu().double(), labels.cpu()
    _, group, members = np.unique(groups, return_inverse=True, return_counts=True)
    weight = torch.from_numpy(1 / members[group])

    def cost(log_temperature: float) -> float:
        misfit = functional.cross_entropy(logits / math.exp(log_temperature), labels, reduction="none")
        return float(weight @ misfit) + log_temperature**2 / 2

    # With its prior the cost need not have a single valley, so the grid finds the deepest.
    best = int(np.argmin([cost(value) for value in LOG_TEMPERATURES]))
    ends = LOG_TEMPERATURES[max(best - 1, 0)], LOG_TEMPERATURES[min(best + 1, len(LOG_TEMPERATURES) - 1)]
    found = optimize.minimize_scalar(cost, bounds=ends, method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))


def expected_calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """How far confidence is from accuracy, 0 to 1 (ECE of Guo et al., ICML 2017); NaN without scans.

    ``probabilities`` (n, k), ``labels`` (n,); ``bins`` of equal width over the largest probability, each of them
    weighted by its number of scans.
    """
    if not len(labels):
        return float("nan")
    confidence, answers = probabilities.detach().double().max(dim=1)
    gap = (answers == labels).double() - confidence
    number = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return float(torch.zeros(bins, dtype=torch.float64).index_add(0, number, gap).abs().sum() / len(labels))


@dataclass(frozen=True)
class Quantiles:
    """A score on n clean validation scans, sorted, as the measure of new ones (split conformal; Vovk et al. 2005).

    What is said of rates holds for any score, however distributed, where a new clean scan is exchangeable with the
    validation scans, which must not have trained anything. Stored as plain numbers.
    """

    scores: tuple[float, ...]

    @staticmethod
    def of(values: torch.Tensor) -> Quantiles:
        """Of scores (n,), in any order; raises ValueError where there are none, or one is not finite."""
        if values.ndim != 1 or not len(values) or not values.isfinite().all():
            raise ValueError(f"quantiles need finite scores of shape (n,), n >= 1, got {values}")
        return Quantiles(tuple(values.detach().double().sort().values.tolist()))

    def threshold(self, false_positive_rate: float) -> float:
        """The score that a clean scan exceeds with a probability of at most ``false_positive_rate``, in [0, 1].

        It is the ceil((n + 1)(1 - rate))-th smallest score. A rate below 1 / (n + 1) cannot be promised with n scans:
        then it is the largest score, which a clean scan exceeds with a probability of at most 1 / (n + 1).
        """
        if not 0 <= false_positive_rate <= 1:
            raise ValueError(f"a false positive rate is between 0 and 1, got {false_positive_rate}")
        wanted = (len(self.scores) + 1) * (1 - false_positive_rate)
        rank = math.ceil(round(wanted, 9))  # (n + 1) * (1 - rate) may come out a hair above a whole number
        return self.scores[min(max(rank, 1), len(self.scores)) - 1]

    def p_value(self, values: torch.Tensor) -> torch.Tensor:
        """Conformal p-values (n,) of scores (n,): (1 + validation scores at least as large) / (1 + all of them)."""
        known = self._known(values.device)
        at_least: torch.Tensor = 1 + len(known) - torch.searchsorted(known, values.detach().double())
        return at_least.to(values.dtype) / (1 + len(known))

    def rank(self, values: torch.Tensor) -> torch.Tensor:
        """Where scores (n,) stand among the clean ones, 1 / (n + 1) to n / (n + 1), differentiable.

        The i-th smallest validation score has rank i / (n + 1), tied ones the mean of theirs, and it is linear in
        between; beyond the smallest and the largest score it is constant.
        """
        known, counts = self._known(values.device).unique(return_counts=True)
        ranks = (counts.cumsum(0) - (counts - 1) / 2) / (len(self.scores) + 1)
        inside = values.double().clamp(float(known[0]), float(known[-1]))
        placed: torch.Tensor
        if len(known) == 1:
            placed = inside - known + ranks
        else:
            right = torch.searchsorted(known, inside.detach().contiguous()).clamp(1, len(known) - 1)
            slope = (ranks[right] - ranks[right - 1]) / (known[right] - known[right - 1])
            placed = ranks[right - 1] + slope * (inside - known[right - 1])
        return placed.to(values.dtype)

    def to_dict(self) -> dict[str, list[float]]:
        """As what JSON can hold."""
        return {"scores": list(self.scores)}

    @staticmethod
    def from_dict(stored: Mapping[str, Sequence[float]]) -> Quantiles:
        """Back from :meth:`to_dict`."""
        return Quantiles.of(torch.tensor(stored["scores"], dtype=torch.float64))

    def _known(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(self.scores, dtype=torch.float64, device=device)


def pooled(scores: Sequence[torch.Tensor], limit: Callable[[torch.Tensor], float], *, f: int) -> torch.Tensor:
    """The scores (n,) of all hospitals as one, without those of the f hospitals whose own ``limit`` is highest and of
    the f whose is lowest: the trimmed mean (Yin et al., ICML 2018), of a quantile.

    Whatever f hospitals send, and however many scores, the limit of the pool is then at most the highest that an
    honest hospital would have by itself: who stays lies between honest ones, and a mixture's quantile between its
    parts'. That holds for :meth:`Quantiles.threshold` and, to both sides, for the median. Scores that are not finite
    count as highest. Where f is half of the hospitals or more, only the middle ones stay. Raises ValueError where a
    hospital sends no scores.
    """
    for own in scores:
        if own.ndim != 1 or not len(own):
            raise ValueError(f"a hospital's scores must be finite and of shape (n,), n >= 1, got {own}")
    heights = [limit(own) if own.isfinite().all() else float("inf") for own in scores]
    trimmed = min(f, (len(scores) - 1) // 2)
    order = np.argsort(heights, kind="stable")
    kept = np.sort(order[trimmed : len(order) - trimmed])
    return torch.cat([scores[number] for number in kept])


@dataclass(frozen=True)
class Fusion:
    """Several anomaly scores as one: the soft maximum of how many deviations each is above what is usual.

    ``location`` is the median of each score on clean validation scans, ``scale`` its deviation. The deviation is
    measured upwards only, as the distance from the median to the 95 % quantile over that of a normal distribution:
    scores such as a divergence have a long tail to the right, and where that tail is measured by the median absolute
    deviation its clean values reach dozens of deviations and drown every other score.

    The soft maximum, log(mean(exp(z))), sees one score that stands out nearly as well as the maximum does and many
    that are all a little high much better. The sum of squares of the positive z sees both as well, but has no slope
    where all of them are negative: an attacker would be stopped there by nothing but a missing gradient.

    Scores in ``silent`` do not count and need not be measured; what is usual of them is known, for whoever draws them.
    """

    location: Mapping[str, float]
    scale: Mapping[str, float]
    silent: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "silent", tuple(self.silent))  # a file holds it as a list
        if not self.counting:
            raise ValueError(f"a fusion needs at least one score that counts, got {sorted(self.location)}")

    @property
    def counting(self) -> tuple[str, ...]:
        """The scores that are fused."""
        return tuple(name for name in self.location if name not in self.silent)

    @staticmethod
    def fit(parts: Mapping[str, torch.Tensor], *, silent: tuple[str, ...] = ()) -> Fusion:
        """From each score of one hospital's clean validation scans, as :meth:`of_hospitals`."""
        return Fusion.of_hospitals([parts], f=0, silent=silent)

    @staticmethod
    def of_hospitals(each: Sequence[Mapping[str, torch.Tensor]], *, f: int, silent: tuple[str, ...] = ()) -> Fusion:
        """From the scores of clean validation scans, (n,), of several hospitals, of which ``f`` may lie.

        Median and 95 % quantile are each of its own trimmed pool: an attacker whose scores end where all others end may
        still have its middle where it likes. A score whose upper half is all the same, or whose middle then lies above
        its tail, takes the median of the hospitals' own deviations; one that never varies, 1. Raises ValueError where a
        hospital has no score, or a pool one that is not finite.
        """
        location, scale = {}, {}
        for name in each[0]:
            scores = [parts[name].detach().double().cpu() for parts in each]
            middles = pooled(scores, lambda own: float(np.median(own.numpy())), f=f)
            tails = pooled(scores, lambda own: Quantiles.of(own).threshold(1 - TAIL), f=f)
            if not (middles.isfinite().all() and tails.isfinite().all()):
                raise ValueError(f"the score {name} must be finite, got {middles} and {tails}")
            middle, high = float(np.median(middles.numpy())), float(np.quantile(tails.numpy(), TAIL))
            location[name] = middle
            if high > middle:
                scale[name] = (high - middle) / TAIL_DEVIATIONS
            else:
                scale[name] = float(np.median([_deviation(own.numpy()) for own in scores if own.isfinite().all()]))
        return Fusion(location, scale, silent)

    def __call__(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The fused score (n,) of scores (n,) each, in deviations of clean scans, 0 where all are usual.

        Differentiable. Raises ValueError where they are not the scores that it was fitted to.
        """
        if parts.keys() != set(self.counting):
            raise ValueError(f"this fusion takes {sorted(self.counting)}, got {sorted(parts)}")
        deviations = [(parts[name] - self.location[name]) / self.scale[name] for name in self.counting]
        return torch.stack(deviations).logsumexp(dim=0) - math.log(len(deviations))


def _deviation(scores: np.ndarray) -> float:
    """The upward deviation of scores (n,), or where it is 0 the standard one, or where that is 0 as well, 1."""
    middle, high = np.quantile(scores, [0.5, TAIL])
    return float((high - middle) / TAIL_DEVIATIONS) or float(scores.std()) or 1.0


@dataclass(frozen=True)
class DepthMap:
    """How deep a scan is purified by its score: ``t_min`` up to ``low``, ``t_max`` from ``high``, linear between.

    MedFedPure (Karami et al. 2025) lets the depth grow with the score and gives no formula; this is ours. Depths are
    noise steps. Raises ValueError where an end is above the other.
    """

    t_min: int
    t_max: int
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (0 <= self.t_min <= self.t_max and self.low <= self.high):
            raise ValueError(f"a depth map needs 0 <= t_min <= t_max and low <= high, got {self}")

    @staticmethod
    def fit(quantiles: Quantiles, *, t_min: int, t_max: int) -> DepthMap:
        """From the median to the 99 % quantile of clean validation scores, or to their largest where they are few."""
        return DepthMap(t_min, t_max, quantiles.threshold(0.5), quantiles.threshold(0.01))

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores (n,) to noise steps (n,) int64, the nearest."""
        return self.fractional(scores).round().long()

    def fractional(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores (n,) to depths (n,) between the steps, differentiable in the scores."""
        share = (scores - self.low) / max(self.high - self.low, NARROWEST)
        return self.t_min + (self.t_max - self.t_min) * share.clamp(0, 1)
