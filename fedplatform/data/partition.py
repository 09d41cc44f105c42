"""How scans are spread over hospitals: five ways to be unlike, each an object that draws the hospitals' shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fedplatform.core.seeding import numpy_generator
from fedplatform.data.error import DataError
from fedplatform.data.index import Index, Integers, Strings
from fedplatform.data.splits import Groups, Role, largest_first, strata_of

Shares = npt.NDArray[np.float64]

SERVER = -1
# A share of zero means "never" (another site's scans); a hospital that merely drew next to nothing keeps this much.
LEAST_SHARE = 1e-9


@runtime_checkable
class Partition(Protocol):
    """Draws which share of every stratum each hospital gets.

    An implementation is a frozen dataclass whose fields are its settings. ``counts`` is (sites, classes), the training
    scans of each; the result (num_hospitals, sites, classes) sums to 1 over the hospitals. A zero is a promise: that
    hospital gets no scan of that stratum.
    """

    def __call__(self, counts: Integers, generator: np.random.Generator, *, num_hospitals: int) -> Shares:
        """Shares (num_hospitals, sites, classes)."""
        ...


@dataclass(frozen=True)
class Iid:
    """Every hospital the same share of every class and site."""

    def __call__(
        self,
        counts: Integers,
        generator: np.random.Generator,  # noqa: ARG002 - the interface's; nothing is drawn here
        *,
        num_hospitals: int,
    ) -> Shares:
        """Shares (num_hospitals, sites, classes)."""
        return np.full((num_hospitals, *counts.shape), 1 / num_hospitals)


@dataclass(frozen=True)
class Dirichlet:
    """Each class is spread by its own Dirichlet draw (Yurochkin et al., ICML 2019); a small concentration is skewed."""

    concentration: float = 0.5

    def __post_init__(self) -> None:
        if not self.concentration > 0:
            raise DataError(f"Dirichlet needs concentration > 0, got {self.concentration}")

    def __call__(self, counts: Integers, generator: np.random.Generator, *, num_hospitals: int) -> Shares:
        """Shares (num_hospitals, sites, classes)."""
        sites, classes = counts.shape
        drawn = generator.dirichlet(np.full(num_hospitals, self.concentration), size=classes).T
        return _over_sites(drawn, sites)


@dataclass(frozen=True)
class LabelSkew:
    """Each hospital has a main class that makes up ``share`` of its scans, the other classes the rest in equal parts.

    Exact where the classes are of equal size and the hospitals a multiple of them; near it else, because every scan
    is dealt. The main classes go round the hospitals.
    """

    share: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise DataError(f"LabelSkew needs 0 < share <= 1, got {self.share}")

    def __call__(
        self,
        counts: Integers,
        generator: np.random.Generator,  # noqa: ARG002 - the interface's; nothing is drawn here
        *,
        num_hospitals: int,
    ) -> Shares:
        """Shares (num_hospitals, sites, classes)."""
        sites, classes = counts.shape
        main = np.arange(num_hospitals) % classes
        mix = np.full((num_hospitals, classes), (1 - self.share) / (classes - 1))
        mix[np.arange(num_hospitals), main] = self.share
        return _over_sites(mix, sites)


@dataclass(frozen=True)
class QuantitySkew:
    """Hospitals of unlike size and like mix: the sizes are log-normal, ``sigma`` the deviation of their logarithm."""

    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise DataError(f"QuantitySkew needs sigma >= 0, got {self.sigma}")

    def __call__(self, counts: Integers, generator: np.random.Generator, *, num_hospitals: int) -> Shares:
        """Shares (num_hospitals, sites, classes)."""
        sites, classes = counts.shape
        sizes = np.exp(self.sigma * generator.standard_normal(num_hospitals))
        return _over_sites(np.repeat(sizes[:, None], classes, axis=1), sites)


@dataclass(frozen=True)
class BySite:
    """Every site its own hospital; where there are several sites a hospital, they are dealt out by the seed."""

    def __call__(self, counts: Integers, generator: np.random.Generator, *, num_hospitals: int) -> Shares:
        """Shares (num_hospitals, sites, classes), each 0 or 1."""
        sites, classes = counts.shape
        if sites % num_hospitals:
            raise DataError(
                f"partition site needs as many sites as hospitals or a multiple, got {sites} sites, {num_hospitals} "
                "hospitals; --partition iid deals scans without regard to sites"
            )
        order = np.arange(sites) if sites == num_hospitals else generator.permutation(sites)
        shares = np.zeros((num_hospitals, sites, classes))
        shares[np.arange(sites) % num_hospitals, order] = 1
        return shares


PARTITIONS: dict[str, type[Iid | Dirichlet | LabelSkew | QuantitySkew | BySite]] = {
    "iid": Iid,
    "dirichlet": Dirichlet,
    "label_skew": LabelSkew,
    "quantity_skew": QuantitySkew,
    "site": BySite,
}


def spread(
    index: Index,
    roles: Strings,
    how: Partition,
    *,
    num_hospitals: int,
    seed: int,
    graders: Sequence[int] | None = None,
) -> Integers:
    """Number the hospital of every scan, (n,) int64 from 0; -1 for the server's root scans.

    Whole groups only (single scans where the index has none). Training and validation scans go to all hospitals, test
    scans to the ``graders`` (all, if None) by the same shares; a site that none of the graders has keeps its own test
    scans. A hospital whose share is less than a group still gets one training group. Raises DataError where there are
    fewer training groups than hospitals.
    """
    if num_hospitals < 1:
        raise DataError(f"a federation needs at least 1 hospital, got {num_hospitals}")
    grading = np.zeros(num_hospitals, np.bool_)
    for grader in range(num_hospitals) if graders is None else graders:
        if not 0 <= grader < num_hospitals:
            raise DataError(f"graders are hospitals 0 to {num_hospitals - 1}, got {grader}")
        grading[grader] = True
    if not grading.any():
        raise DataError("somebody must grade: the graders are empty")

    strata, shape = strata_of(index)
    num_strata = shape[0] * shape[1]
    units = np.arange(len(index)) if index.groups is None else index.groups
    counts = np.bincount(strata[roles == Role.TRAIN], minlength=num_strata)
    shares = how(counts.reshape(shape), numpy_generator(seed, "partition"), num_hospitals=num_hospitals)
    shares = shares.reshape(num_hospitals, num_strata)
    graded = shares * grading[:, None]
    total = graded.sum(axis=0)
    test_shares = np.where(total > 0, graded / np.where(total > 0, total, 1), shares)

    hospital_of = np.full(len(index), SERVER, np.int64)
    for role, part, least in (
        (Role.TRAIN, shares, 1),
        (Role.VALIDATION, shares, 0),
        (Role.TEST, test_shares, 0),
    ):
        here = roles == role
        groups = Groups.of(units[here], strata[here], num_strata=num_strata)
        generator = numpy_generator(seed, "partition", role.value)
        hospital_of[here] = _deal(groups.counts, part, generator, least=least)[groups.of_scan]
    return hospital_of


def _over_sites(weights: npt.NDArray[np.float64], sites: int) -> Shares:
    """From weights (hospitals, classes) of any scale to shares, the same at every site."""
    shares = np.maximum(weights / weights.sum(axis=0), LEAST_SHARE)
    return np.repeat((shares / shares.sum(axis=0))[:, None], sites, axis=1)


def _deal(counts: Integers, shares: Shares, generator: np.random.Generator, *, least: int) -> Integers:
    """Deal groups (g, s) to hospitals so that each comes near its shares (hospitals, s) of every stratum; (g,) int64.

    Every hospital first gets ``least`` groups, then the largest remaining group goes to whom it is owed most.
    """
    if len(counts) < least * len(shares):
        raise DataError(f"{len(shares)} hospitals need at least as many training groups, got {len(counts)}")
    owed = shares * counts.sum(axis=0)
    order = largest_first(counts, generator)
    hospital_of = np.full(len(counts), SERVER, np.int64)

    def give(group: int, hospital: int) -> None:
        hospital_of[group] = hospital
        owed[hospital] -= counts[group]

    for hospital in np.repeat(np.argsort(owed.sum(axis=1), kind="stable"), least):
        # The smallest groups first, of the class that this hospital has most of.
        free = order[hospital_of[order] == SERVER][::-1]
        liking = (counts[free] @ shares[hospital]) / counts[free].sum(axis=1)
        if not (liking > 0).any():
            raise DataError(f"hospital {hospital} has no training group at its site")
        give(int(free[liking.argmax()]), int(hospital))
    for group in order[hospital_of[order] == SERVER]:
        strata = np.flatnonzero(counts[group])
        claim = owed[:, strata] @ counts[group, strata]
        may = (shares[:, strata] > 0).all(axis=1)
        if not may.any():
            raise DataError("a group has scans at two sites that are not of one hospital; it cannot be kept whole")
        give(int(group), int(np.where(may, claim, -np.inf).argmax()))
    return hospital_of
