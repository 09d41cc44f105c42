"""Which scan of a file answers for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# What data sets call the class of scans without a finding, in small letters and without blanks.
WITHOUT_FINDING = frozenset(
    {"healthy", "normal", "no", "none", "negative", "nofinding", "notumor", "notumour", "nondemented", "control"}
)


def most_suspicious(probabilities: np.ndarray, classes: Sequence[str], *, foreign: np.ndarray) -> int:
    """The scan of a file that counts: of probabilities (n, classes), the row least like a scan without a finding.

    Scans that look like another kind of picture (``foreign``, bool (n,)) do not count, unless most of the file does:
    the slices at the ends of a volume often show too little, and a file of photographs must be referred.

    A lesion need not show in every slice, so neither the middle one nor a mean can answer for a volume. Where no class
    is called so, the class that the scans have on average stands for it: the scan that differs most from it counts.
    """
    plain = ["".join(letter for letter in name.lower() if letter.isalnum()) for name in classes]
    found = [number for number, name in enumerate(plain) if name in WITHOUT_FINDING]
    usual = found[0] if found else int(np.argmax(np.mean(probabilities, axis=0)))
    counting = foreign if 2 * foreign.sum() > len(foreign) else ~foreign
    return int(np.argmin(np.where(counting, np.asarray(probabilities)[:, usual], np.inf)))
