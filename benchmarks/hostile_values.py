"""Hostile values against every rule: `python -m benchmarks.hostile_values` writes docs/results/hostile_values.csv.

It prints the table of docs/results-appendix.md from it.

Seven or ten hospitals send made-up updates of 400 numbers, as many of them hostile as the rule is made for, three
rounds long. The honest spread is 1: the root mean square distance of honest updates from their mean, which is 10 long.
So a step of zeros lies 10 spreads away, and a rule that stays within 3 has taken a good step.
"""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from fedplatform.core.messages import Aggregate, Evidence, HospitalState, Layer, Rehearsal, Reply, Update
from fedplatform.experiments.rule_text import parse_rule
from fedplatform.federated.aggregation import Aggregator, aggregate_usable
from fedplatform.federated.arrivals import Arrivals
from fedplatform.federated.secure import GroupTested

LAYERS = (Layer("last.weight", (4, 99)), Layer("last.bias", (4,)))
D = sum(layer.size for layer in LAYERS)
ROUNDS = 3
LENGTH = 10.0  # of the honest mean, in honest spreads
ALLOWED = 3.0  # honest spreads between a robust rule's step and the honest mean
SIZES = (7, 10)
RESULTS = Path(__file__).parents[1] / "docs/results/hostile_values.csv"

Forge = Callable[[np.ndarray, int], np.ndarray]


def _one_coordinate(honest: np.ndarray, attackers: int) -> np.ndarray:
    sent = np.tile(honest.mean(axis=0), (attackers, 1))
    sent[:, 3] = 1e15
    return sent


def _opposite_pairs(honest: np.ndarray, attackers: int) -> np.ndarray:
    direction = np.random.default_rng(1).normal(size=honest.shape[1])
    return 1e12 * direction * np.where(np.arange(attackers) % 2, -1, 1)[:, None]


def _filled(value: float) -> Forge:
    return lambda honest, attackers: np.full((attackers, honest.shape[1]), value)


UNUSABLE: dict[str, Forge] = {
    "NaN": _filled(np.nan),
    "infinite": _filled(np.inf),
    "3.4e38": _filled(3.4e38),
    "1e30": _filled(1e30),
    "one coordinate 3.4e38": lambda honest, attackers: (
        np.where(np.arange(honest.shape[1]) == 3, 3.4e38, 0) * np.ones((attackers, 1))
    ),
}
USABLE: dict[str, Forge] = {
    "as long as is taken": lambda honest, attackers: _filled(-4e17)(honest, attackers),
    "one coordinate 1e15": _one_coordinate,
    "opposite pairs": _opposite_pairs,
    "denormals": _filled(1e-42),
    "zeros": _filled(0.0),
    "minus the sum of the others": lambda honest, attackers: np.tile(-honest.sum(axis=0), (attackers, 1)),
}
EVERYBODY: dict[str, Forge] = {  # what all hospitals send, the honest ones too
    "all identical": lambda honest, attackers: np.tile(honest[0], (len(honest) + attackers, 1)),
    "all zeros": lambda honest, attackers: np.zeros((len(honest) + attackers, honest.shape[1])),
    "all denormals": lambda honest, attackers: np.full((len(honest) + attackers, honest.shape[1]), 1e-42),
}
KINDS = {**UNUSABLE, **USABLE, **EVERYBODY}


@dataclass(frozen=True)
class Entry:
    """A rule of the table: how many of seven and of ten hospitals may be hostile, and why it may fail, if it may."""

    text: str
    most: tuple[int, int]
    groups: int = 0  # hospitals in a group, where the rule sees the means of groups
    exempt: str = ""

    def rule(self, n: int) -> Aggregator:
        built = parse_rule(self.text, f=self.hostile(n))
        return GroupTested(built) if self.groups else built

    def hostile(self, n: int) -> int:
        return self.most[SIZES.index(n)]

    @property
    def name(self) -> str:
        return f"{self.text} over groups of {self.groups}" if self.groups else self.text


NO_MAJORITY = "a mean has no majority to hold on to: one hospital moves it anywhere"
ONLY_SHORTENED = "clipping shortens an update and leaves it its direction and its share"
ONLY_ALIKE = "it lowers the weight of hospitals that send the same direction, and of no other"
NEEDS_ROUNDS = "it looks at nobody before it has seen several rounds"
LAYERS_APART = "it judges each layer by itself, and a layer of few numbers says little"
ENTRIES = (
    Entry("mean", (2, 3), exempt=NO_MAJORITY),
    Entry("weighted_mean", (2, 3), exempt=NO_MAJORITY),
    Entry("median", (2, 3)),
    Entry("trimmed_mean", (2, 3)),
    Entry("krum", (2, 3)),
    Entry("multi_krum", (2, 3)),
    Entry("bulyan", (1, 1)),
    Entry("geometric_median", (2, 3)),
    Entry("rfa", (2, 3)),
    Entry("centered_clipping", (2, 3)),
    Entry("fltrust", (2, 3)),
    Entry("dnc", (2, 3)),
    Entry("signguard", (2, 3)),
    Entry("flame", (2, 3)),
    Entry("foolsgold", (2, 3), exempt=ONLY_ALIKE),
    Entry("fldetector", (2, 3), exempt=NEEDS_ROUNDS),
    Entry("deepsight", (2, 3), exempt=ONLY_SHORTENED),
    Entry("lasa", (2, 3), exempt=LAYERS_APART),
    Entry("alignins", (2, 3)),
    Entry("norm_clip+mean", (2, 3), exempt=ONLY_SHORTENED),
    Entry("norm_clip+median", (2, 3)),
    Entry("nnm+trimmed_mean", (2, 3)),
    Entry("bucketing+geometric_median", (1, 2)),
    Entry("trust", (2, 3)),
    Entry("network+trust", (2, 3)),
    Entry("policy+trust", (2, 3)),
    Entry("hybrid+trust", (2, 3)),
    Entry("trust", (1, 1), groups=2),
)


@dataclass(frozen=True, eq=False)
class Bowl:
    """A root set whose loss is the squared distance of a step to the place that honest hospitals walk to."""

    place: np.ndarray
    delta: np.ndarray

    def losses(self, steps: np.ndarray) -> np.ndarray:
        found: np.ndarray = ((steps - self.place).astype(np.float64) ** 2).sum(axis=1)
        return found

    def gradient(self, step: np.ndarray) -> np.ndarray:
        return 2 * (step - self.place)

    def rehearse(self, *, num_hospitals: int, num_rounds: int, generator: torch.Generator) -> Sequence[Rehearsal]:
        draw = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        played = [honest_updates(draw, self.place, num_hospitals) for _ in range(num_rounds)]
        return [Rehearsal(honest, -honest, self.delta, np.zeros_like(self.delta), self) for honest in played]


def honest_updates(draw: np.random.Generator, step: np.ndarray, n: int) -> np.ndarray:
    """Updates (n, D) float32 around ``step``, of hospitals that differ in how far they lie from it."""
    around = draw.normal(size=(n, D)) * draw.uniform(0.5, 1.5, size=(n, 1))
    around -= around.mean(axis=0)
    around /= np.sqrt((around**2).sum(axis=1).mean())
    return (step + around).astype(np.float32)


def bowl(draw: np.random.Generator) -> Bowl:
    place = draw.normal(size=D)
    place *= LENGTH / np.linalg.norm(place)
    return Bowl(place.astype(np.float32), (place + 0.05 * draw.normal(size=D)).astype(np.float32))


@dataclass(frozen=True)
class Outcome:
    """Of three rounds: the largest distance of a step to the honest mean in honest spreads, and who was refused."""

    distance: float
    refused: tuple[str, ...]
    reasons: tuple[str, ...]


def play(entry: Entry, kind: str, n: int, *, seed: int = 0) -> Outcome:
    """Three rounds of a rule with hostile hospitals, the last ones of n, that send this kind of values."""
    draw, hostile = np.random.default_rng(seed), entry.hostile(n)
    root, rule = bowl(draw), entry.rule(n)
    memory = taught(entry.text, n) if entry.text.endswith("+trust") else None
    previous = (0.7 * root.place).astype(np.float32)
    distances: list[float] = []
    refused: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    for number in range(1, ROUNDS + 1):
        honest = honest_updates(draw, root.place, n - hostile)
        if kind in EVERYBODY:
            sent, mean = EVERYBODY[kind](honest, hostile), None
        else:
            sent, mean = np.concatenate([honest, KINDS[kind](honest, hostile)]), honest.mean(axis=0)
        sent = sent.astype(np.float32)
        names = names_of(n)
        arrivals = Arrivals(names, num_shared=D, size=D, round_number=number)
        groups = [tuple(names[start : start + entry.groups]) for start in range(0, n, entry.groups or n)]
        for row, name in enumerate(names):
            group: tuple[str, ...] = ()
            delta = sent[row]
            if entry.groups:
                group = next(group for group in groups if name in group)
                delta = _mean_behind_masks(sent[[names.index(member) for member in group]])
            update = Update(name, number, delta, 100, 0.5, 1.0, group)
            arrivals.add(Reply(name, HospitalState.REPORTED, update))
        rows, _ = arrivals.table()
        usable = arrivals.updates
        evidence = Evidence(
            hospital_ids=tuple(update.hospital_id for update in usable),
            num_examples=np.array([update.num_examples for update in usable]),
            previous_delta=previous,
            generator=torch.Generator().manual_seed(number),
            round_number=number,
            root_delta=root.delta,
            root=root,
            memory=memory,
            groups=tuple(update.group for update in usable if update.group),
            weights=root.place,
            layers=LAYERS,
        )
        aggregate: Aggregate = aggregate_usable(rule, rows, evidence, refused=n - len(usable))
        memory, previous = aggregate.memory, aggregate.delta
        wanted = sent[0] if mean is None else mean
        distances.append(float(np.linalg.norm(aggregate.delta.astype(np.float64) - wanted)))
        refused = tuple(reply.hospital_id for reply in arrivals.replies if reply.update is None)
        reasons = tuple(reply.reason for reply in arrivals.replies if reply.update is None)
    return Outcome(max(distances), refused, reasons)


def names_of(n: int) -> list[str]:
    return [f"hospital-{row}" for row in range(n)]


@cache
def taught(text: str, n: int) -> object:
    """The memory of a learned scorer after one honest round: its rehearsal takes longer than all that follows."""
    draw = np.random.default_rng(9)
    root = bowl(draw)
    evidence = Evidence(
        hospital_ids=tuple(names_of(n)),
        num_examples=np.full(n, 100),
        previous_delta=np.zeros(D, np.float32),
        generator=torch.Generator().manual_seed(0),
        round_number=1,
        root_delta=root.delta,
        root=root,
    )
    return parse_rule(text, f=0)(honest_updates(draw, root.place, n), evidence).memory


def _mean_behind_masks(members: np.ndarray) -> np.ndarray:
    """What the server sees of a group: entries beyond the ring of secure aggregation are refused in the hospital."""
    mean: np.ndarray = members.clip(-5e8, 5e8).mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def main() -> None:
    warnings.simplefilter("error")
    rows: list[list[object]] = []
    for entry in ENTRIES:
        for kind in KINDS:
            if entry.groups and kind in UNUSABLE:
                continue
            for n in SIZES:
                outcome = play(entry, kind, n)
                rows.append([entry.name, kind, n, entry.hostile(n), len(outcome.refused), f"{outcome.distance:.3g}"])
                print(*rows[-1], sep="\t", file=sys.stderr)
    with RESULTS.open("w", newline="") as file:
        csv.writer(file).writerows([["rule", "values", "hospitals", "hostile", "refused", "distance"], *rows])
    print(markdown(rows))


def markdown(rows: Sequence[Sequence[object]]) -> str:
    """The table of the appendix: a row a rule, a column a kind of usable values, the worse of seven and ten hospitals.

    A kind that is refused for every rule has one column together with the others of that sort.
    """
    columns = {"refused": tuple(UNUSABLE), **{kind: (kind,) for kind in (*USABLE, *EVERYBODY)}}
    lines = [f"| rule | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name in dict.fromkeys(row[0] for row in rows):
        cells = []
        for kinds in columns.values():
            found = [float(str(row[5])) for row in rows if row[0] == name and row[1] in kinds]
            cells.append(f"{max(found):.2g}" if found else "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
