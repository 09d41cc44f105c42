"""What a hospital tells of its scans before anybody trains: counts and histograms, no picture and no small count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BINS = 32  # of a histogram of pixel values, each of eight of the 256 grey levels
LEAST = 5  # patients below which a count is suppressed


@dataclass(frozen=True)
class PatientBin:
    """So many patients have from ``low`` to ``high`` scans each (None: ``low`` and more)."""

    low: int
    high: int | None
    patients: int

    @property
    def words(self) -> str:
        """The numbers of scans: ``1``, ``2–4``, ``50+``."""
        if self.high is None:
            return f"{self.low}+"
        return str(self.low) if self.high == self.low else f"{self.low}–{self.high}"


@dataclass(frozen=True)
class SiteStatistics:
    """One hospital's scans in numbers; a cell of ``counts`` with fewer than ``least`` patients is suppressed.

    ``counts`` are scans by role and class: None where suppressed, 0 where there is none. Where a scan has any number of
    findings they are by finding, those without one last, and of scans with no suppressed finding. All other figures are
    of the ``shown`` scans, which are in no suppressed cell: nothing here depends on what such a cell holds, so no total
    and no sum gives it away. ``patients`` and ``scans_per_patient`` are of these scans, and so are, by channel,
    ``histogram`` (shares of the pixels, :data:`BINS` each), ``means`` and ``deviations`` (pixels in [0, 1]); they are
    empty where no cell is shown. ``names_patients`` says whether the data set named the patient of every scan (True) or
    of none, so that near-identical pictures stand for a patient (False); None where the shard does not say.
    ``failure`` says in one line why there are no figures.
    """

    hospital_id: str
    least: int
    size: int = 0
    channels: int = 0
    counts: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    shown: int = 0
    patients: int = 0
    scans_per_patient: tuple[PatientBin, ...] = ()
    histogram: tuple[tuple[float, ...], ...] = ()
    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()
    names_patients: bool | None = None
    failure: str = ""

    @property
    def suppressed(self) -> int:
        """How many cells are suppressed."""
        return sum(count is None for counts in self.counts.values() for count in counts)

    @property
    def without_patient(self) -> int | None:
        """Shown scans whose patient nobody named; None where that is not known."""
        return None if self.names_patients is None else 0 if self.names_patients else self.shown

    @property
    def lacking(self) -> tuple[int, ...]:
        """The labels of which it has no scan at all."""
        return tuple(
            label for label, of_class in enumerate(zip(*self.counts.values(), strict=True)) if not any_in(of_class)
        )


def any_in(counts: tuple[int | None, ...]) -> bool:
    """Whether there is a scan in any of these cells, shown or suppressed."""
    return any(count is None or count for count in counts)
