"""Whether a picture is of the kind that a model was trained on: an out-of-distribution gate before every answer.

A brain model that is sent a photograph must not say "healthy". The gate measures the Mahalanobis distance (Lee et al.,
NeurIPS 2018) of simple statistics of a picture, which do not depend on any network and so not on what an attacker or a
poisoned training did to one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional

FOREIGN_RATE = 0.03  # of clean scans that may be taken for foreign: with 5 % for low confidence, 8 % are referred
SHRINKAGE = 0.3  # of a covariance towards its diagonal: hospitals have hundreds of scans, and statistics are dozens
FOLDS = 5  # a scan is measured by a Gaussian that was fitted without its group
LEAST_GROUPS = FOLDS
LEVELS = torch.linspace(0.02, 0.98, 13)  # of the quantiles of brightness
CHROMA_LEVELS = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
BANDS = 10  # rings of spatial frequency, in equal ratios
GRID, COARSE = 8, 4  # cells a side of the layout and of the local contrast
TINY = 1e-6


def picture_statistics(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What is measured of images (n, c, h, w) in [0, 1], in blocks (n, d) of which each gets a Gaussian of its own.

    Texture: power of the spatial frequencies, quantiles of brightness, contrast by region. Layout: brightness by
    region. Colour, where there are three channels: quantiles of the differences of the channels.
    """
    grey = images.mean(dim=1)
    means = functional.adaptive_avg_pool2d(grey[:, None], COARSE)
    squares = functional.adaptive_avg_pool2d(grey[:, None] ** 2, COARSE)
    contrast = (squares - means**2).clamp_min(0).sqrt().flatten(1)
    brightness = torch.quantile(grey.flatten(1), LEVELS.to(images), dim=1).T
    texture = torch.cat([_spectrum(grey), brightness, contrast], dim=1)
    layout = functional.adaptive_avg_pool2d(grey[:, None], GRID).flatten(1)
    if images.shape[1] != 3:
        return texture, layout
    chroma = (images[:, :2] - images[:, 1:]).flatten(2)
    colour = torch.quantile(chroma, CHROMA_LEVELS.to(images), dim=2).permute(1, 2, 0).flatten(1)
    return texture, layout, torch.cat([colour, images.flatten(2).mean(dim=2)], dim=1)


def _spectrum(grey: torch.Tensor) -> torch.Tensor:
    """Logarithm of the mean power (n, bands) in rings around frequency 0, which itself is left out."""
    height, width = grey.shape[1:]
    power = torch.fft.fft2(grey - grey.mean(dim=(1, 2), keepdim=True)).abs() ** 2 / (height * width)
    down, across = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    radius = torch.hypot(down[:, None], across[None]).to(grey.device) * 2  # 1 is the highest frequency along a side
    edges = torch.logspace(math.log10(2 / min(height, width)), 0, BANDS + 1)
    rings = [(radius >= low) & (radius < high) for low, high in pairwise(edges)]
    return torch.stack([(power[:, ring].mean(dim=1) + TINY).log() for ring in rings if ring.any()], dim=1)


@dataclass(frozen=True, eq=False)
class CleanStatistics:
    """What one hospital tells of its clean scans: means, covariances, medians and spreads, and nothing of a single one.

    For each block of :func:`picture_statistics`: the mean (d,), the inverse of the covariance (d, d), and the median
    and the spread of the distances of its own scans.
    """

    means: tuple[torch.Tensor, ...]
    precisions: tuple[torch.Tensor, ...]
    medians: torch.Tensor
    spreads: torch.Tensor


def measure(images: torch.Tensor, groups: np.ndarray) -> tuple[CleanStatistics, torch.Tensor]:
    """The statistics of clean scans (n, c, h, w) in [0, 1], and the score (n,) of each, measured without its group.

    Groups (n,) weigh the same: thirty slices of one odd patient are not thirty odd patients. Raises ValueError for
    fewer than five groups.
    """
    numbers = np.unique(groups, return_inverse=True)[1]
    if len(np.unique(numbers)) < LEAST_GROUPS:
        raise ValueError(f"clean scans are measured in at least {LEAST_GROUPS} groups, got {len(np.unique(numbers))}")
    blocks = [block.double() for block in picture_statistics(images)]
    distances = torch.empty(len(images), len(blocks), dtype=torch.float64)
    for fold in range(FOLDS):
        out = torch.from_numpy(numbers % FOLDS == fold)
        for column, block in enumerate(blocks):
            distances[out, column] = _distance(block[out], *_gaussian(block[~out]))
    fits = [_gaussian(block) for block in blocks]
    medians = torch.stack([group_quantile(own, numbers, 0.5) for own in distances.T])
    tails = torch.stack([group_quantile(own, numbers, 0.9) for own in distances.T])
    spreads = (tails - medians).clamp_min(TINY)
    told = CleanStatistics(tuple(mean for mean, _ in fits), tuple(inverse for _, inverse in fits), medians, spreads)
    return told, ((distances - medians) / spreads).amax(dim=1)


class KindGate(nn.Module):
    """Refers pictures of another kind than the hospitals' scans (after Lee et al., NeurIPS 2018).

    The score is the largest of the Mahalanobis distances of a picture's blocks of statistics, in spreads above the
    median of clean scans, and of these the median over the hospitals: no minority of hospitals can open or close the
    gate. It has two sides in every statistic: what is too dark is as foreign as what is too bright. The threshold comes
    of clean scans, see :func:`fit_gates`.

    >>> import numpy as np, torch
    >>> scans = torch.rand(60, 1, 16, 16) ** 3
    >>> gate = fit_gates({"a": (scans, np.arange(60))})["a"]
    >>> bool(gate.is_foreign(torch.ones(1, 1, 16, 16)))
    True
    """

    threshold: torch.Tensor
    medians: torch.Tensor
    spreads: torch.Tensor

    def __init__(self, hospitals: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(float("inf")))
        self.register_buffer("medians", torch.zeros(hospitals, len(widths)))
        self.register_buffer("spreads", torch.ones(hospitals, len(widths)))
        for block, width in enumerate(widths):
            self.register_buffer(f"mean_{block}", torch.zeros(hospitals, width))
            self.register_buffer(f"precision_{block}", torch.zeros(hospitals, width, width))

    @staticmethod
    def of(hospitals: Sequence[CleanStatistics]) -> KindGate:
        """From what the hospitals tell of their scans; it refers nothing until its threshold is set."""
        gate = KindGate(len(hospitals), [len(mean) for mean in hospitals[0].means])
        gate.medians.copy_(torch.stack([each.medians for each in hospitals]))
        gate.spreads.copy_(torch.stack([each.spreads for each in hospitals]))
        for block in range(len(hospitals[0].means)):
            gate.get_buffer(f"mean_{block}").copy_(torch.stack([each.means[block] for each in hospitals]))
            gate.get_buffer(f"precision_{block}").copy_(torch.stack([each.precisions[block] for each in hospitals]))
        return gate

    def by_hospital(self, images: torch.Tensor) -> torch.Tensor:
        """The score (hospitals, n) of images (n, c, h, w) by each hospital's statistics."""
        distances = [
            _distance(
                block.double(),
                self.get_buffer(f"mean_{number}").double()[:, None],
                self.get_buffer(f"precision_{number}").double(),
            )
            for number, block in enumerate(picture_statistics(images))
        ]
        deviations = (torch.stack(distances, dim=2) - self.medians[:, None]) / self.spreads[:, None]
        # A hospital whose statistics are no numbers takes everything for foreign; else it alone would open the gate.
        return deviations.amax(dim=2).nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The score (n,) of images (n, c, h, w) in [0, 1], in spreads above the median of clean scans."""
        return self.by_hospital(images).median(dim=0).values

    def is_foreign(self, images: torch.Tensor) -> torch.Tensor:
        """Which of the images (n, c, h, w) are of another kind: bool (n,)."""
        foreign: torch.Tensor = self(images) > self.threshold
        return foreign


def kind_gate(state: Mapping[str, torch.Tensor]) -> KindGate:
    """The gate of a ``state_dict``, whose shapes say for how many hospitals and statistics it is."""
    hospitals, blocks = state["medians"].shape
    gate = KindGate(hospitals, [state[f"mean_{block}"].shape[1] for block in range(blocks)])
    gate.load_state_dict(dict(state))
    return gate


def fit_gates(
    hospitals: Mapping[str, tuple[torch.Tensor, np.ndarray]], *, rate: float = FOREIGN_RATE, f: int = 0
) -> dict[str, KindGate]:
    """A gate for each hospital, of clean scans (n, c, h, w) and their groups (n,) in each.

    A share ``rate`` of clean scans passes for foreign: the threshold is that of the scans of all hospitals together,
    without the ``f`` hospitals whose own is highest and the ``f`` whose is lowest; or a hospital's own, where that is
    higher and it has groups enough to tell. A quantile of thirty groups is uncertain, and pictures of another kind lie
    far beyond. Without any hospital of five groups there are no gates.
    """
    measured = {name: measure(*own) for name, own in hospitals.items() if len(np.unique(own[1])) >= LEAST_GROUPS}
    if not measured:
        return {}
    gate = KindGate.of([told for told, _ in measured.values()])
    scores, thresholds = {}, {}
    for number, (name, (_, without_own_group)) in enumerate(measured.items()):
        images, groups = hospitals[name]
        each = gate.by_hospital(images)
        each[number] = without_own_group
        scores[name] = each.median(dim=0).values
        thresholds[name] = group_quantile(scores[name], groups, 1 - rate)
    common = _pooled_threshold(scores, {name: hospitals[name][1] for name in scores}, thresholds, level=1 - rate, f=f)
    gates = {}
    for name, (_, groups) in hospitals.items():
        can_tell = name in thresholds and (len(np.unique(groups)) + 1) * rate >= 1
        gates[name] = deepcopy(gate)
        gates[name].threshold.copy_(torch.maximum(common, thresholds[name]) if can_tell else common)
    return gates


def _pooled_threshold(
    scores: Mapping[str, torch.Tensor],
    groups: Mapping[str, np.ndarray],
    own: Mapping[str, torch.Tensor],
    *,
    level: float,
    f: int,
) -> torch.Tensor:
    """The quantile of all hospitals' scores, but for the f whose own is highest and the f whose is lowest."""
    trimmed = min(f, (len(own) - 1) // 2)
    order = sorted(own, key=lambda name: float(own[name]))
    kept = order[trimmed : len(order) - trimmed]
    names = [f"{name}/{group}" for name in kept for group in groups[name]]
    return group_quantile(torch.cat([scores[name] for name in kept]), np.array(names), level)


def group_quantile(values: torch.Tensor, groups: np.ndarray, level: float) -> torch.Tensor:
    """The smallest of values (n,) that a share ``level`` of the groups (n,) does not exceed, each of equal weight."""
    _, number, members = np.unique(groups, return_inverse=True, return_counts=True)
    weights = torch.from_numpy(1 / (members[number] * len(members)))
    order = values.argsort()
    below = weights[order].cumsum(dim=0)
    place = int(torch.searchsorted(below, level - TINY))
    return values[order][min(place, len(values) - 1)]


def _gaussian(block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean (d,) and the inverse of the shrunk covariance (d, d) of a block (n, d)."""
    covariance = torch.cov(block.T)
    diagonal = torch.diag(covariance.diagonal() + TINY)
    return block.mean(dim=0), torch.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal)


def _distance(block: torch.Tensor, mean: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
    """The Mahalanobis distance (..., n) of rows (n, d) by one Gaussian, or by several along a first dimension."""
    away = block - mean
    distance: torch.Tensor = torch.einsum("...nd,...de,...ne->...n", away, precision, away).clamp_min(0).sqrt()
    return distance
