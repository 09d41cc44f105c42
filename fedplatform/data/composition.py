"""What a data set is made of: its classes, patients and sites, as counts that say how it may be split and dealt."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedplatform.core.tasks import has, needed_everywhere
from fedplatform.data.error import DataError
from fedplatform.data.index import Index

UNLIKE = 0.1  # by which sites must differ in the share of a class


def rarest_class_by_site(index: Index) -> tuple[str, list[float]]:
    """The rarest class, and its share at each site; none where there are no sites."""
    label = int(index.class_counts.argmin())
    sites = [] if index.sites is None else [index.sites == site for site in np.unique(index.sites)]
    return index.classes[label], [float(has(index.labels[here], label).mean()) for here in sites]


def sites_differ_in_mix(index: Index) -> bool:
    """Whether the share of the rarest class at one site is far from that at another."""
    _, shares = rarest_class_by_site(index)
    return max(shares, default=0) - min(shares, default=0) > UNLIKE


def patients_on_both_sides(index: Index) -> int:
    """How many patients lie on several sides of the published split."""
    if index.groups is None or index.splits is None:
        return 0
    return _spread_over(index.groups, index.splits)


def patients_at_several_sites(index: Index) -> int:
    """How many patients have scans at several sites."""
    if index.groups is None or index.sites is None:
        return 0
    return _spread_over(index.groups, index.sites)


def require_enough(index: Index) -> None:
    """Raise DataError for a class of fewer than three patients, or scans, in words that say what to do."""
    for words, here in needed_everywhere(index.labels, index.classes):
        scans = int(here.sum())
        count = scans if index.groups is None else len(np.unique(index.groups[here]))
        if 0 < count < 3:
            what = f"{scans} scans" if index.groups is None else f"scans of {count} patients"
            raise DataError(
                f"{words} has {what}; training, validation and test need one each, and a network needs dozens"
            )


def _spread_over(groups: npt.NDArray[np.int64], places: npt.NDArray[np.str_]) -> int:
    pairs = np.unique(np.stack([groups, np.unique(places, return_inverse=True)[1]]), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())
