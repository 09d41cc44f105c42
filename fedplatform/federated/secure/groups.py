"""Who is summed with whom: groups drawn anew each round, and pairs that were spoiled together kept apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

EXCHANGES = 1000  # a bound that no deal reaches: every exchange lowers the conflict that remains


@dataclass(frozen=True)
class Seating:
    """What a deal of groups heeds: who is kept ``apart``, who of the excluded is among the others, who should not meet.

    ``on_probation`` names the one excluded hospital that is tested in a group of others, or nobody where it is empty.
    ``conflicts`` holds pairs of names and how strongly each speaks against a common group, above 0.
    """

    apart: tuple[str, ...] = ()
    on_probation: str = ""
    conflicts: tuple[tuple[str, str, float], ...] = ()

    def renamed(self, names: Mapping[str, str]) -> Seating:
        """The same under other names; who has none of ``names`` is left out."""
        return Seating(
            tuple(names[name] for name in self.apart if name in names),
            names.get(self.on_probation, ""),
            tuple(
                (names[one], names[other], weight)
                for one, other, weight in self.conflicts
                if one in names and other in names
            ),
        )


def draw_groups(
    hospital_ids: Sequence[str], *, size: int, seating: Seating, generator: torch.Generator
) -> tuple[tuple[str, ...], ...]:
    """Deal hospitals at random into as many groups of at least ``size`` as there can be, of sizes as equal as can be.

    Pairs in conflict are then exchanged into different groups as far as that goes, so that a hospital meets others than
    those beside whom its group was spoiled. Those kept apart are dealt among themselves, so that they spoil no other
    group. Fewer than ``size`` of a kind make no group, for a sum of fewer would tell more than was promised; they are
    in none, and sit out. Only where the others would then make a single group, with nothing to compare it with, they
    fill up one together with some of them; who is on probation is then in it.
    """

    def shuffled(names: list[str]) -> list[str]:
        return [names[place] for place in torch.randperm(len(names), generator=generator).tolist()]

    apart = {*seating.apart}
    if sum(name not in apart for name in hospital_ids) <= 2 * size:
        apart.add(seating.on_probation)
    kept = shuffled([name for name in hospital_ids if name not in apart])
    others = shuffled([name for name in hospital_ids if name in apart])
    kinds = [kept, others] if len(kept) >= 2 * size else [kept + others]
    return tuple(
        tuple(sorted(group))
        for kind in kinds
        if len(kind) >= size
        for group in _exchanged(kind, len(kind) // size, seating, pinned=others if kind is not others else ())
    )


def _exchanged(names: list[str], count: int, seating: Seating, *, pinned: Collection[str]) -> list[list[str]]:
    """Names cut into ``count`` groups in their order, and all but the pinned exchanged while that lowers conflicts."""
    group = np.repeat(np.arange(count), [len(part) for part in np.array_split(names, count)])
    place = {name: number for number, name in enumerate(names)}
    conflict = np.zeros((len(names), len(names)))
    for one, other, weight in seating.conflicts:
        if one in place and other in place:
            conflict[[place[one], place[other]], [place[other], place[one]]] += weight
    stays = np.array([name in pinned for name in names])
    for _ in range(EXCHANGES if conflict.any() else 0):
        beside = conflict @ (group[:, None] == np.arange(count))  # of each hospital with each group
        here, there = beside[np.arange(len(names)), group], beside[:, group]
        change = there + there.T - here[:, None] - here - 2 * conflict
        change[stays[:, None] | stays | (group[:, None] == group)] = 0.0
        one, other = np.unravel_index(change.argmin(), change.shape)
        if change[one, other] > -1e-9:
            break
        group[one], group[other] = group[other], group[one]
    return [[name for name, of in zip(names, group, strict=True) if of == number] for number in range(count)]
