"""Who is summed with whom: groups drawn anew each round."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch


def draw_groups(
    hospital_ids: Sequence[str], *, size: int, apart: Collection[str], generator: torch.Generator
) -> tuple[tuple[str, ...], ...]:
    """Deal hospitals at random into as many groups of at least ``size`` as there can be, of sizes as equal as can be.

    Those kept ``apart`` are dealt among themselves, so that they spoil no other group. Fewer than ``size`` of a kind
    make no group, for a sum of fewer would tell more than was promised; they are in none, and sit out.
    """
    groups: list[tuple[str, ...]] = []
    for kind in (
        [name for name in hospital_ids if name not in apart],
        [name for name in hospital_ids if name in apart],
    ):
        count = len(kind) // size
        order = [kind[place] for place in torch.randperm(len(kind), generator=generator).tolist()]
        groups += [tuple(sorted(order[group::count])) for group in range(count)]
    return tuple(groups)
