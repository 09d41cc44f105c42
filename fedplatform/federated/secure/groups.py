"""Who is summed with whom: groups drawn anew each round."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch


def draw_groups(
    hospital_ids: Sequence[str], *, size: int, apart: Collection[str], generator: torch.Generator
) -> tuple[tuple[str, ...], ...]:
    """Deal hospitals at random into as many groups of at least ``size`` as there can be, of sizes as equal as can be.

    Those kept ``apart`` are dealt among themselves, so that they spoil no other group. Fewer than ``size`` of a kind
    make no group, for a sum of fewer would tell more than was promised; they are in none, and sit out. Only where the
    others would then make a single group, with nothing to compare it with, they fill up one together with some of them.
    """

    def shuffled(names: list[str]) -> list[str]:
        return [names[place] for place in torch.randperm(len(names), generator=generator).tolist()]

    kept = shuffled([name for name in hospital_ids if name not in apart])
    others = shuffled([name for name in hospital_ids if name in apart])
    kinds = [kept, others] if len(kept) >= 2 * size else [kept + others]
    return tuple(
        tuple(sorted(group.tolist()))
        for kind in kinds
        if len(kind) >= size
        for group in np.array_split(np.array(kind), len(kind) // size)
    )
