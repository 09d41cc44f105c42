"""Slander and plain attacks against group testing: python -m benchmarks.slander [RUNS [FALSE_ALARM [MISSED]]].

A simulation without training. A group looks spoiled with probability 1 - MISSED where somebody in it misbehaves, else
with FALSE_ALARM. Two designs are compared. ``marginal`` excludes by the probability that a hospital lies, deals at
random, and tests an excluded hospital only where there are enough of them for a group. ``accusers`` is the package's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedplatform.federated.secure.exclusion import Exclusion, Verdict, judge_hospitals, next_seating
from fedplatform.federated.secure.group_rule import REFUSED
from fedplatform.federated.secure.groups import Seating, draw_groups
from fedplatform.federated.secure.suspicion import GroupTest, NoisyGroupTesting

TESTING = NoisyGroupTesting()
ROUNDS = 40
CASES = (  # the attack, hospitals, attackers among them, group size
    *(("none", n, 0, size) for n, size in ((10, 3), (10, 5), (20, 5))),
    *(("plain", n, f, size) for n, f, size in ((10, 2, 2), (10, 1, 3), (10, 2, 3), (10, 3, 3), (10, 2, 5))),
    *(("plain", n, f, size) for n, f, size in ((20, 4, 3), (20, 4, 5))),
    *(("on_off", n, f, size) for n, f, size in ((10, 2, 3), (20, 4, 3))),
    *(("slander", 10, f, size) for size in (3, 4, 5) for f in (1, 2, 3)),
    *(("slander", 20, f, size) for size in (3, 5) for f in (1, 2, 3, 6)),
)


@dataclass(frozen=True)
class Design:
    """What happens after round ``now``: who is suspected and excluded, and how the groups of ``now`` are dealt."""

    judge: Callable[[Sequence[GroupTest], Sequence[Exclusion], int], Verdict]
    seat: Callable[[Sequence[GroupTest], Sequence[Exclusion], int], Seating]


def by_marginal_suspicion(tests: Sequence[GroupTest], before: Sequence[Exclusion], now: int) -> Verdict:
    """Excluded above .8 and reinstated below .4, whoever was in the spoiled groups."""
    out = {exclusion.hospital_id for exclusion in before}
    suspicion = TESTING(tests, now=now)
    bad = (name for name, chance in suspicion.items() if chance > (0.4 if name in out else 0.8))
    return Verdict(suspicion, tuple(Exclusion(name, now) for name in bad))


def at_random(_tests: Sequence[GroupTest], out: Sequence[Exclusion], _now: int) -> Seating:
    """The excluded apart, and nobody else heeded."""
    return Seating(tuple(exclusion.hospital_id for exclusion in out))


DESIGNS = {
    "marginal": Design(by_marginal_suspicion, at_random),
    "accusers": Design(
        lambda tests, before, now: judge_hospitals(TESTING, tests, before, now=now),
        lambda tests, out, now: next_seating(TESTING, tests, out, now=now),
    ),
}


@dataclass(frozen=True)
class Outcome:
    """Of one run; weights are in equal shares, over all rounds."""

    victim_out: float  # share of rounds in which the victim is excluded
    longest: int  # rounds at a stretch for which it is
    victim_weight: float
    honest_weight: float  # mean over honest hospitals
    harm: float  # weight of groups that passed although somebody in them misbehaved, of 1
    found: float  # rounds until all attackers are excluded at once
    false: float  # share of honest hospitals and rounds that are excluded


def misbehaves(attack: str, group: Collection[str], byzantine: Collection[str], victim: str, number: int) -> bool:
    """Whether somebody in a group misbehaves in round ``number``."""
    if attack == "none" or set(byzantine).isdisjoint(group):
        return False
    return {"plain": True, "on_off": (number - 1) // 5 % 2 == 0, "slander": victim in group}[attack]


def simulate(
    design: Design, attack: str, n: int, f: int, size: int, *, seed: int, false_alarm: float, missed: float
) -> Outcome:
    """One run of ``ROUNDS`` rounds; the first f of n hospitals attack, and the next one is their victim."""
    draw, generator = np.random.default_rng([seed, n, f, size]), torch.Generator().manual_seed(1000 * seed + n)
    names = [f"h{number:02d}" for number in range(n)]
    byzantine, victim, honest = names[:f], names[f], names[f:]
    tests: list[GroupTest] = []
    out: tuple[Exclusion, ...] = ()
    seating = Seating()
    weight = dict.fromkeys(names, 0.0)
    excluded: list[set[str]] = []
    harm = 0.0
    for number in range(1, ROUNDS + 1):
        groups = draw_groups(names, size=size, seating=seating, generator=generator)
        bad = np.array([misbehaves(attack, group, byzantine, victim, number) for group in groups])
        spoiled = draw.random(len(groups)) < np.where(bad, 1 - missed, false_alarm)
        sound = np.where(spoiled, draw.uniform(0, 0.15, len(groups)), draw.uniform(0.8, 1, len(groups)))
        tests += [GroupTest(number, group, float(s)) for group, s in zip(groups, sound, strict=True)]
        verdict = design.judge(tests, out, number)
        # What counts, as in the group rule.
        before = {exclusion.hospital_id for exclusion in out}
        passing = (sound >= REFUSED) & np.array([before.isdisjoint(group) for group in groups])
        clean = np.array([np.prod([1 - verdict.suspicion[name] for name in group]) for group in groups])
        if passing.any():
            passing &= clean >= clean[passing].max() / 2
            members = passing * np.array([len(group) for group in groups])
            harm += float(members[bad].sum() / members.sum())
            for name in (name for group, passes in zip(groups, passing, strict=True) if passes for name in group):
                weight[name] += n / float(members.sum()) / ROUNDS
        out = verdict.exclusions
        seating = design.seat(tests, out, number + 1)
        excluded.append({exclusion.hospital_id for exclusion in out})
    stretches = "".join("x" if victim in gone else " " for gone in excluded).split()
    return Outcome(
        victim_out=float(np.mean([victim in gone for gone in excluded])),
        longest=max(map(len, stretches), default=0),
        victim_weight=weight[victim],
        honest_weight=float(np.mean([weight[name] for name in honest])),
        harm=harm / ROUNDS,
        found=next((number for number, gone in enumerate(excluded, 1) if set(byzantine) <= gone), np.inf),
        false=float(np.mean([len(gone.intersection(honest)) for gone in excluded])) / len(honest),
    )


def main(runs: int = 20, false_alarm: float = 0.03, missed: float = 0.1) -> None:
    """Print the table; for each case ``runs`` seeds from 0 on."""
    print("| attack | n | f | size | design | victim out | longest | weight | honest | harm | found | false |")
    print("|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    for case in CASES:
        for name, design in DESIGNS.items():
            got = [simulate(design, *case, seed=seed, false_alarm=false_alarm, missed=missed) for seed in range(runs)]
            means = {field: float(np.mean([getattr(run, field) for run in got])) for field in Outcome.__annotations__}
            found = float(np.median([run.found for run in got]))
            print(
                f"| {' | '.join(map(str, case))} | {name} | {means['victim_out']:.0%} | "
                f"{means['longest']:.1f} ({max(run.longest for run in got)}) | "
                f"{means['victim_weight']:.2f} ({min(run.victim_weight for run in got):.2f}) | "
                f"{means['honest_weight']:.2f} | {means['harm']:.3f} | {found:.0f} | {means['false']:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *map(float, sys.argv[2:]))
