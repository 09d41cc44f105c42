"""Which scans an epoch of training shows: every one once, or every patient, or class, as often as any other."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

SamplingName = Literal["scans", "groups", "classes"]


def odds_of(sampling: SamplingName, labels: np.ndarray, groups: np.ndarray) -> torch.Tensor | None:
    """How likely each scan is drawn, (n,); None where an epoch shows every scan once."""
    if sampling == "scans" or not len(labels):
        return None
    odds = group_odds(labels, groups)
    if sampling == "classes":
        _, of_class = np.unique(labels, return_inverse=True)
        shares = torch.bincount(torch.from_numpy(of_class), weights=odds)
        odds = odds / (shares * len(shares))[of_class]
    return odds


def group_odds(labels: np.ndarray, groups: np.ndarray) -> torch.Tensor:
    """How likely each scan is drawn (n,), summing to 1: classes as among the scans, the groups of a class alike.

    ``labels`` and ``groups`` are (n,). Forty near-identical slices of one patient teach hardly more than one of them,
    but by number they count forty times as much as the only slice of another. A group with scans of several classes
    counts as one in each.
    """
    _, of_class, per_class = np.unique(labels, return_inverse=True, return_counts=True)
    pairs = np.stack([of_class, groups])
    found, of_pair, per_pair = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
    groups_in_class = np.bincount(found[0], minlength=len(per_class))
    odds = per_class[of_class] / (len(labels) * groups_in_class[of_class] * per_pair[of_pair.reshape(-1)])
    return torch.from_numpy(odds)


def epoch_order(count: int, odds: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
    """The places of ``count`` scans in the order of one epoch: each once, or as many drawn by their ``odds``."""
    if odds is None:
        return torch.randperm(count, generator=generator)
    return torch.multinomial(odds, count, replacement=True, generator=generator)
