"""One hospital's scans in numbers, computed where they lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedplatform.core.site_statistics import BINS, LEAST, PatientBin, SiteStatistics
from fedplatform.core.tasks import has
from fedplatform.data.shards import Shard
from fedplatform.data.splits import Role

ROLES = (Role.TRAIN, Role.VALIDATION, Role.TEST)
LEVELS = 256
AT_ONCE = 8 << 20  # bytes of pictures that are looked at together
STEPS = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 9), (10, 19), (20, 49), (50, None))  # scans of a patient


def site_statistics(shard: Shard, hospital_id: str, *, least: int = LEAST) -> SiteStatistics:
    """The statistics of a shard; cells of fewer than ``least`` patients are left out of everything.

    Raises ValueError for ``least`` below 1.
    """
    if least < 1:
        raise ValueError(f"a count is suppressed below a least number of patients >= 1, got {least}")
    counts: dict[str, tuple[int | None, ...]] = {}
    levels = np.zeros((shard.channels, LEVELS), np.int64)
    patients: list[np.ndarray] = []
    scans = 0
    for role in ROLES:
        labels, groups = shard.labels(role), shard.groups(role)
        cells = [has(labels, label) for label in range(len(shard.classes))]
        cells += [~np.any(cells, axis=0)] if shard.is_multilabel else []
        counts[role.value], shown = _shown(cells, groups, least)
        patients.append(groups[shown])
        scans += int(shown.sum())
        if shown.any():
            levels += _levels(shard, role, shown)
    scans_of = np.unique(np.concatenate(patients), return_counts=True)[1]
    total = levels.sum(axis=1)
    has_any = bool(total.any())
    values = np.arange(LEVELS) / (LEVELS - 1)
    means = levels @ values / np.maximum(total, 1)
    squares = levels @ values**2 / np.maximum(total, 1)
    deviations = np.sqrt(np.maximum(squares - means**2, 0.0))
    shares = levels.reshape(shard.channels, BINS, -1).sum(axis=2) / np.maximum(total, 1)[:, None]
    return SiteStatistics(
        hospital_id,
        least,
        size=shard.size,
        channels=shard.channels,
        counts=counts,
        shown=scans,
        patients=len(scans_of),
        scans_per_patient=_patient_bins(scans_of, least),
        histogram=tuple(tuple(np.round(row, 5).tolist()) for row in shares) if has_any else (),
        means=tuple(np.round(means, 4).tolist()) if has_any else (),
        deviations=tuple(np.round(deviations, 4).tolist()) if has_any else (),
        names_patients=shard.names_patients,
    )


def _shown(cells: Sequence[np.ndarray], groups: np.ndarray, least: int) -> tuple[tuple[int | None, ...], np.ndarray]:
    """How many scans each cell shows, None where it is suppressed, and which scans are in no suppressed one, (n,).

    A cell with too few patients, but at least one, is suppressed and its scans with it. Where a scan may be in several
    cells, that leaves fewer in the others, and so it goes on until none has too few.
    """
    shown, suppressed = np.ones(len(groups), bool), [False] * len(cells)
    while few := [
        number
        for number, cell in enumerate(cells)
        if not suppressed[number] and (cell & shown).any() and len(np.unique(groups[cell & shown])) < least
    ]:
        for number in few:
            suppressed[number] = True
            shown = shown & ~cells[number]
    counts = (None if gone else int((cell & shown).sum()) for cell, gone in zip(cells, suppressed, strict=True))
    return tuple(counts), shown


def _levels(shard: Shard, role: Role, shown: np.ndarray) -> np.ndarray:
    """How often each grey level occurs in the scans that are shown, (channels, 256)."""
    pictures = shard.pictures(role)
    levels = np.zeros((shard.channels, LEVELS), np.int64)
    step = max(1, AT_ONCE // (shard.channels * shard.size**2))
    for start in range(0, len(shown), step):
        part = pictures[start : start + step][shown[start : start + step]]
        for channel in range(shard.channels):
            levels[channel] += np.bincount(part[:, channel].reshape(-1), minlength=LEVELS)
    return levels


def _patient_bins(scans_of: Sequence[int] | np.ndarray, least: int) -> tuple[PatientBin, ...]:
    """Patients by their number of scans, steps joined with the next until each has ``least`` patients."""
    numbers = np.asarray(scans_of)
    bins: list[PatientBin] = []
    start, waiting, end = 0, 0, None
    for low, high in STEPS:
        here = int(((numbers >= low) & (numbers <= (high or np.inf))).sum())
        if not here:
            continue
        start, end = start or low, high
        waiting += here
        if waiting >= least:
            bins.append(PatientBin(start, high, waiting))
            start, waiting = 0, 0
    if waiting and bins:
        last = bins.pop()
        bins.append(PatientBin(last.low, end, last.patients + waiting))
    return tuple(bins)
