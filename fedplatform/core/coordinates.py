"""Which coordinates to look at where looking at all d of them would say no more."""

from __future__ import annotations

import numpy as np
import torch

COUNTED = 4096


def evenly_spaced(deltas: np.ndarray) -> np.ndarray:
    """At most 4,096 evenly spaced columns, always the same ones: (n, d) to (n, s). For reports, not for judging."""
    return deltas[:, :: max(1, -(-deltas.shape[1] // COUNTED))]


def random_columns(deltas: np.ndarray, count: int, *, generator: torch.Generator) -> np.ndarray:
    """Up to ``count`` columns that no attacker can foresee: (n, d) to (n, s), or all of them where d is no larger.

    Drawn with repetition and then made unique, which for count well below d is nearly the same set and needs no
    permutation of d numbers.
    """
    d = deltas.shape[1]
    if d <= count:
        return deltas
    drawn = torch.randint(d, (count,), generator=generator).numpy()
    return np.take(deltas, np.unique(drawn), axis=1)
