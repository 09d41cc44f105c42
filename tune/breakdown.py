"""The study ``breakdown``: accuracy of rules against the share of attackers and the strength of an attack; a grid."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ray.tune.search.sample import Domain

from fedplatform.data.splits import Role
from fedplatform.experiments.experiment import Experiment
from tune.phase import Budget, Listing, Phase
from tune.poisoning import CURVE, STRENGTHS, attack_space, attacked
from tune.setting import setting_of
from tune.study import FederatedStudy
from tune.trial import Choice


@dataclass(frozen=True)
class Breakdown(FederatedStudy):
    """Curves and no search: every rule under ``attacks``, by ever more attackers at usual strength, and ever stronger.

    Everything is set beforehand and nothing is chosen, so the test scans measure it. Rules are built for the f of the
    federation; ``most_byzantine`` may be more, to see the rule break. ``seeds`` are averaged over.
    """

    rules: tuple[str, ...] = ("mean", "median", "trimmed_mean", "multi_krum", "trust")
    attacks: tuple[str, ...] = ("sign_flip", "min_max(direction='std')")
    most_byzantine: int = 4
    base: str = ""
    seeds: tuple[int, ...] = (0,)

    def space(self) -> Mapping[str, Domain]:
        """What a cell consists of."""
        return attack_space(self.attacks, most_byzantine=self.most_byzantine)

    def experiment(self, choice: Choice) -> Experiment:
        """A cell."""
        return attacked(setting_of(self.base, seed=int(choice["seed"])), choice, rule=str(choice["rule"]))

    def phases(self, budget: Budget) -> Iterator[Phase]:  # noqa: ARG002
        """The whole grid; the budget is of no matter."""
        yield Listing("curve", self.cells(), role=Role.TEST)

    def cells(self) -> dict[str, Choice]:
        """Seed by seed, attack by attack and axis by axis, so that a grid that is cut off is a smaller one."""
        cells: dict[str, Choice] = {}
        for seed, attack in itertools.product(self.seeds, self.attacks):
            known = STRENGTHS[attack]
            usual = {
                "attack": attack,
                "strength": known.usual,
                "byzantine": setting_of(self.base, seed=seed).f,
                "seed": seed,
            }
            for strength, rule in itertools.product(CURVE if known.setting else (), self.rules):
                cells[f"{rule}, {attack} at {strength:g}, seed {seed}"] = {**usual, "rule": rule, "strength": strength}
            for some, rule in itertools.product(range(self.most_byzantine + 1), self.rules):
                # Without an attacker there is no attack, whichever it would be.
                changed = {"byzantine": some} if some else {"byzantine": 0, "attack": "none"}
                cells[f"{rule}, {attack} by {some}, seed {seed}"] = {**usual, "rule": rule, **changed}
        return cells
