"""Which scans are of one patient: what a data set says itself, a pattern in its file names, or a column."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fedplatform.data.error import DataError

GIVEN, NOBODY = "given", "none"
COLUMNS = ("group", "patient", "patient_id", "patientid", "subject", "subject_id", "lesion_id", "case_id")
# From the surest to the least sure: a word for a person, then a number at the beginning with something behind it.
PATTERNS = (
    r"(?i)((?:patient|subject|person|sub|case|pat)[-_ ]?\d+)",
    r"^([A-Za-z]*\d+)[-_ ]",
    r"^([A-Za-z]+\d*[-_]?\d+)[-_ ]",
)
DATE = re.compile(r"(19|20)\d{6}")
FEWEST = 5  # patients of a class
LARGEST_SHARE = 0.25  # of all scans
SCANS_A_PATIENT = 1.3  # on average, within a class


@dataclass(frozen=True)
class FoundPattern:
    """A pattern in file names that repeats as patients do, and how many of them it finds."""

    pattern: str
    patients: int
    files: int

    @property
    def words(self) -> str:
        """How it was found, and how to say that it is wrong."""
        return f"found in file names: {self.patients:,} patients of {self.files:,} files; --patients none: not so"


def patient_in(name: str, pattern: str) -> str:
    """What the pattern's group finds in a file name; "" where it finds nothing."""
    found = re.search(pattern, name)
    return (found[1] or "") if found else ""


def require_pattern(pattern: str) -> None:
    """Refuse what is no regular expression with one group. Raises DataError."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise DataError(f"patients: {pattern!r} is no regular expression ({error})") from error
    if groups != 1:
        raise DataError(f"patients: a pattern has one group, as '^(p[0-9]+)_', got {pattern!r} with {groups}")


def find_pattern(files: Sequence[tuple[str, str]]) -> FoundPattern | None:
    """The pattern by which the names of ``files`` (class, file name) tell the patient; None where none surely does.

    It must fit every file and repeat within the classes; no number may hold a good part of all files, or be a date.

    >>> names = [f"patient{number:02d}_slice{slice}.png" for number in range(6) for slice in range(3)]
    >>> found = find_pattern([("tumour", name) for name in names])
    >>> found.patients, found.files
    (6, 18)
    >>> find_pattern([("tumour", f"scan_{number:03d}.png") for number in range(18)]) is None
    True
    """
    for pattern in PATTERNS:
        pairs = [(label, patient_in(name, pattern)) for label, name in files]
        sizes = Counter(patient for _, patient in pairs)
        per_class = Counter(label for label, _ in set(pairs))
        if (
            "" not in sizes
            and min(per_class.values(), default=0) >= FEWEST
            and max(sizes.values()) <= LARGEST_SHARE * len(pairs)
            and len(pairs) >= SCANS_A_PATIENT * len(set(pairs))
            and not any(DATE.search(patient) for patient in sizes)
        ):
            return FoundPattern(pattern, len(sizes), len(pairs))
    return None
