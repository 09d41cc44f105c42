"""Which scan of a file answers for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedplatform.core.settings import ExperimentError
from fedplatform.core.specification import nearest

# What data sets call the class of scans without a finding, in small letters and without blanks.
WITHOUT_FINDING = frozenset(
    {"healthy", "normal", "no", "none", "negative", "nofinding", "notumor", "notumour", "nondemented", "control"}
)


def without_finding(classes: Sequence[str], *, named: str | None = None) -> str | None:
    """The class of scans without a finding: the one that is ``named``, or that is called so, or None.

    Raises :class:`ExperimentError` where no class has the name.
    """
    if named is not None:
        if named not in classes:
            raise ExperimentError(f"no class is called {named!r}{nearest(named, classes)}")
        return named
    plain = {name: "".join(letter for letter in name.lower() if letter.isalnum()) for name in classes}
    return next((name for name in classes if plain[name] in WITHOUT_FINDING), None)


def most_suspicious(probabilities: np.ndarray, usual: int | None, *, foreign: np.ndarray) -> int:
    """The scan of a file that counts: of probabilities (n, classes), the row least like the class ``usual``.

    That is the class of scans without a finding. A lesion need not show in every slice, so neither the middle one nor a
    mean can answer for a volume. Where there is no such class (None), the class that the scans have on average stands
    for it: the scan that differs most from it counts.

    Scans that look like another kind of picture (``foreign``, bool (n,)) do not count, unless most of the file does:
    the slices at the ends of a volume often show too little, and a file of photographs must be referred.
    """
    chances = np.asarray(probabilities)
    counting = foreign if 2 * foreign.sum() > len(foreign) else ~foreign
    column = int(np.argmax(chances.mean(axis=0))) if usual is None else usual
    return int(np.argmin(np.where(counting, chances[:, column], np.inf)))
