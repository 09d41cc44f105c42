"""Who is for training, for validation, for the test and for the server, with no group ever cut."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fedplatform.core.seeding import numpy_generator
from fedplatform.core.tasks import needed_everywhere
from fedplatform.data.error import DataError
from fedplatform.data.index import Index, Integers, Strings

Split = Literal["group_safe", "redrawn", "random"]
Mask = npt.NDArray[np.bool_]


class Role(StrEnum):
    """What a scan is used for; ``ROOT`` is the server's own small clean set (FLTrust, Cao et al., 2021)."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    ROOT = "root"


LEFT_OUT = ""  # in the place of a role: the scan is used for nothing


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups and what they hold: ``of_scan`` (n,) the group of every scan, ``counts`` (g, s) scans by stratum."""

    of_scan: Integers
    counts: npt.NDArray[np.int64]

    @staticmethod
    def of(groups: Integers, strata: Integers, *, num_strata: int) -> Groups:
        """Count the scans of every group and stratum; both arrays are (n,)."""
        _, of_scan = np.unique(groups, return_inverse=True)
        size = int(of_scan.max(initial=-1)) + 1
        counts = np.bincount(of_scan * num_strata + strata, minlength=size * num_strata)
        return Groups(of_scan, counts.reshape(size, num_strata))


def strata_of(index: Index) -> tuple[Integers, tuple[int, int]]:
    """The stratum of every scan, (n,), and (sites, kinds): stratum = site number * kinds + kind.

    The kind of a scan is its class; of several findings it is the rarest that it has.
    """
    kinds, count = index.kinds, len(index.kind_names)
    if index.sites is None:
        return kinds, (1, count)
    names, site = np.unique(index.sites, return_inverse=True)
    return site * count + kinds, (len(names), count)


def assign_roles(
    index: Index,
    *,
    split: Split = "group_safe",
    seed: int,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.1,
    root_size: int = 100,
    may_lack: bool = False,
) -> Strings:
    """Give every scan its :class:`Role`, (n,).

    ``group_safe`` moves whole groups. A published test set (and validation set) stays what it is; else folds are
    dealt out, drawn by the seed; else groups are drawn until every class of every site has its fraction. The root
    set is drawn last, in whole groups out of the training scans, the classes balanced; groups of many scans may
    make it larger than ``root_size``. ``redrawn`` does the same and ignores a published split and folds. ``random``
    draws single scans, and is only for comparison with numbers published so.

    Of few folds one at least is for the test and one for validation; of two, validation scans are drawn in groups.
    Raises DataError where a class has too few groups for all the roles, or a published split or a fold cuts a group.
    One hospital of a federation ``may_lack`` a class in a role: its few scans are for training, and others judge.
    """
    if split not in get_args(Split):
        raise DataError(f"a split is one of {', '.join(get_args(Split))}, got {split!r}")
    if test_fraction <= 0 or validation_fraction < 0 or test_fraction + validation_fraction >= 1:
        raise DataError(
            "fractions need 0 < test, 0 <= validation and test + validation < 1, "
            f"got test={test_fraction}, validation={validation_fraction}"
        )
    if root_size < 0:
        raise DataError(f"root_size must be at least 0, got {root_size}")
    fractions = [(Role.TEST, test_fraction), (Role.VALIDATION, validation_fraction)]
    roles, gap = _draw(index, split, seed, fractions, root_size, sparing=False)
    if gap is not None:
        # Groups of unlike size: what is drawn first may have taken two where one would have left enough for all.
        roles, still = _draw(index, split, seed, fractions, root_size, sparing=True)
        if still is not None and not may_lack:
            raise gap
    return roles


def _draw(
    index: Index, split: Split, seed: int, fractions: list[tuple[Role, float]], root_size: int, *, sparing: bool
) -> tuple[Strings, DataError | None]:
    """Roles, and what they lack; a ``sparing`` role takes no group that a later one needs in the same stratum."""
    generator = numpy_generator(seed, "split", split)
    roles = np.full(len(index), Role.TRAIN, dtype="<U10")
    strata, shape = strata_of(index)
    num_strata = shape[0] * shape[1]
    units = np.arange(len(index)) if split == "random" or index.groups is None else index.groups
    groups = Groups.of(units, strata, num_strata=num_strata)

    published = index.splits if split == "group_safe" else None
    folds = index.folds if split == "group_safe" and (index.sites is None or index.groups is None) else None
    wanted = fractions
    if published is not None:
        _refuse_cuts(groups, np.unique(published, return_inverse=True)[1], "the published split")
        roles[published == "test"] = Role.TEST
        roles[published == "validation"] = Role.VALIDATION
        wanted = [(role, fraction) for role, fraction in wanted if not (roles == role).any()]
        folds = None
    if folds is not None:
        _refuse_cuts(groups, folds, "a fold")
        numbers = generator.permutation(np.unique(folds))
        total = len(numbers)
        for role, fraction in wanted:
            count = max(round(fraction * total), 1) if fraction else 0
            taken, numbers = np.split(numbers, [min(count, len(numbers) - 1)])  # the last one is for training
            roles[np.isin(folds, taken)] = role
        wanted = [(role, fraction) for role, fraction in wanted if fraction and not (roles == role).any()]
    whole = np.bincount(strata[roles == Role.TRAIN], minlength=num_strata)
    later = len(wanted) + bool(root_size)  # roles that are still to be drawn, training among them
    for number, (role, fraction) in enumerate(wanted):
        least = later - number if sparing else 1
        roles[_take(groups, roles == Role.TRAIN, fraction * whole, generator, least=least)] = role
    if root_size:
        left = np.bincount(strata[roles == Role.TRAIN], minlength=num_strata).reshape(shape)
        quota = root_size / shape[1] * left / np.maximum(left.sum(axis=0), 1)
        roles[_take(groups, roles == Role.TRAIN, quota.reshape(-1), generator, least=1)] = Role.ROOT

    required = [Role.TRAIN, Role.TEST]
    required += [Role.VALIDATION] if dict(fractions)[Role.VALIDATION] and folds is None and published is None else []
    required += [Role.ROOT] if root_size else []
    return roles, _gap(index, roles, required, groups)


def thin(index: Index, roles: Strings, *, scans: int, seed: int, split: Split = "group_safe") -> Strings:
    """Leave out scans, in whole groups drawn by the seed, until at most ``scans`` have a role; (n,).

    Every class of every site keeps its share in each role. Groups are whole, so test and validation end at their share
    or less than a group above it, and the training scans make up for it; the root set stays as it is. A scan that is
    left out has the role :data:`LEFT_OUT`. Raises DataError where so few scans would lose a role all scans of a class.
    """
    strata, shape = strata_of(index)
    num_strata = shape[0] * shape[1]
    units = np.arange(len(index)) if split == "random" or index.groups is None else index.groups
    groups = Groups.of(units, strata, num_strata=num_strata)
    generator = numpy_generator(seed, "thin")
    thinned = np.where(roles == Role.ROOT, roles, LEFT_OUT)
    budget = scans - int((roles == Role.ROOT).sum())
    remaining = len(index) - (scans - budget)
    for role in (Role.TEST, Role.VALIDATION, Role.TRAIN):  # training last: it takes what the whole groups leave
        here = roles == role
        need = max(budget, 0) / max(remaining, 1) * np.bincount(strata[here], minlength=num_strata)
        taken = np.zeros(len(groups.counts), np.bool_)
        for group in generator.permutation(np.unique(groups.of_scan[here])):
            counts = groups.counts[group]
            nearer = role is not Role.TRAIN or np.abs(need - counts).sum() < np.abs(need).sum()
            if (need[counts > 0] > 0).any() and nearer and counts.sum() <= budget:
                taken[group] = True
                need = need - counts
                budget -= int(counts.sum())
        thinned[here & taken[groups.of_scan]] = role
        remaining -= int(here.sum())
    for role in Role:
        for words, here in needed_everywhere(index.labels, index.classes):
            if (roles[here] == role).any() and not (thinned[here] == role).any():
                raise DataError(f"{scans} scans are too few: {words} is left without {role} scans")
    return thinned


def deal_into_parts(groups: Integers, labels: Integers, *, parts: int, generator: np.random.Generator) -> Integers:
    """Deal whole groups into ``parts`` of about equal size and class balance, (n,) int64: folds for a quick look."""
    table = Groups.of(groups, labels, num_strata=int(labels.max()) + 1)
    need = np.repeat(table.counts.sum(axis=0)[None] / parts, parts, axis=0)
    part_of = np.empty(len(table.counts), np.int64)
    for group in largest_first(table.counts, generator):
        part_of[group] = np.argmax(need @ table.counts[group])
        need[part_of[group]] -= table.counts[group]
    return part_of[table.of_scan]


def largest_first(counts: npt.NDArray[np.int64], generator: np.random.Generator) -> Integers:
    """An order of groups by falling size, the equals shuffled: what is dealt last must be small to even out."""
    shuffled = generator.permutation(len(counts))
    return np.asarray(shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")], np.int64)


def _take(
    groups: Groups, candidates: Mask, quota: npt.NDArray[np.floating], generator: np.random.Generator, *, least: int
) -> Mask:
    """Draw whole groups out of the candidate scans until no further group would come nearer to the quota (s,).

    In every stratum with a quota at least one group is taken; after that, at least ``least`` are left.
    """
    inside = np.unique(groups.of_scan[candidates])
    order = generator.permutation(inside)
    left = (groups.counts[inside] > 0).sum(axis=0)
    need = quota.astype(np.float64)
    taken = np.zeros(len(groups.counts), np.bool_)

    def take(group: int) -> None:
        nonlocal need, left
        taken[group] = True
        need = need - groups.counts[group]
        left = left - (groups.counts[group] > 0)

    for group in order:
        if not (need > 0).any():
            break
        counts = groups.counts[group]
        nearer = np.abs(need - counts).sum() < np.abs(need).sum()
        if nearer and (left[counts > 0] > least).all():
            take(group)
    for stratum in np.flatnonzero(quota > 0):
        if groups.counts[taken, stratum].any():
            continue
        spare = [g for g in order if groups.counts[g, stratum] and (left[groups.counts[g] > 0] > 1).all()]
        if spare:
            take(min(spare, key=lambda g: int(groups.counts[g].sum())))
    return np.asarray(taken[groups.of_scan])


def _refuse_cuts(groups: Groups, parts: Integers, what: str) -> None:
    pairs = np.unique(np.stack([groups.of_scan, parts]), axis=1)
    cut = int((np.bincount(pairs[0]) > 1).sum())
    if cut:
        raise DataError(f"{what} cuts {cut} of {len(groups.counts)} groups: the same patient on both sides")


def _gap(index: Index, roles: Strings, required: list[Role], groups: Groups) -> DataError | None:
    """What to say where a class has no scans in a role that it needs; None where it has all."""
    for words, here in needed_everywhere(index.labels, index.classes):
        missing = [role for role in required if not (roles[here] == role).any()]
        if missing:
            count = len(np.unique(groups.of_scan[here]))
            return DataError(
                f"{words} has {count} groups, too few for a part in each of "
                f"{', '.join(required)}: none is left for {', '.join(missing)}"
            )
    return None
