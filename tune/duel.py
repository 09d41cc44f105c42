"""The study ``duel``: attacker and defender search in turns, each against the other's best, until neither gains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ray import tune as ray_tune
from ray.tune.search.sample import Domain

from fedplatform.data.splits import Role
from fedplatform.experiments.experiment import Experiment
from tune.phase import Budget, Listing, Phase, Search
from tune.poisoning import STRENGTHS, attack_space, attacked, usual_attacks
from tune.setting import setting_of
from tune.study import FederatedStudy, Goal, as_maximisation, is_measured
from tune.trial import Choice, State, Trial

ATTACKER, DEFENDER = "attacker", "defender"
GOALS: Mapping[str, Goal] = {ATTACKER: "min", DEFENDER: "max"}


@dataclass(frozen=True)
class Duel(FederatedStudy):
    """Poisoning against aggregation, blow by blow; the trace is the result.

    The attacker begins, against the first of ``rules``. Each turn is a search of as many trials as the budget says,
    by one side, against the best choice of the other; the pair as it stands is one of them. The duel is over when both
    sides in a row gain no more than ``tolerance``, or after ``turns``. ``base`` is as in
    :func:`tune.setting.setting_of`.
    """

    rules: tuple[str, ...] = (
        "mean", "median", "trimmed_mean", "nnm+trimmed_mean", "multi_krum", "geometric_median", "centered_clipping",
        "trust", "trust(clip=1.0)", "trust(root_steps=6)",
    )  # fmt: skip
    attacks: tuple[str, ...] = tuple(STRENGTHS)
    base: str = ""
    turns: int = 6
    tolerance: float = 0.01
    seed: int = 0

    @property
    def setting(self) -> Experiment:
        """The federation without an attack."""
        return setting_of(self.base, seed=self.seed)

    def space(self) -> Mapping[str, Domain]:
        """What both sides choose together."""
        return {**self._space(ATTACKER), **self._space(DEFENDER)}

    def experiment(self, choice: Choice) -> Experiment:
        """The attack against the rule."""
        return attacked(self.setting, choice, rule=str(choice["rule"]))

    def phases(self, budget: Budget) -> Iterator[Phase]:
        """Turn by turn, then every pair that a turn ended with, on test scans."""
        pair: Choice = {**usual_attacks(["sign_flip"], byzantine=self.setting.byzantine)[0], "rule": self.rules[0]}
        trace: dict[str, Choice] = {"the beginning": pair}
        idle = 0
        for turn in range(1, self.turns + 1):
            side, other = (ATTACKER, DEFENDER) if turn % 2 else (DEFENDER, ATTACKER)
            mine = self._space(side)
            search = Search(
                f"turn{turn}-{side}",
                mine,
                {"accuracy": GOALS[side]},
                budget,
                starts=[{name: pair[name] for name in mine}, *self._starts(side)],
                fixed={name: pair[name] for name in self._space(other)},
            )
            yield search
            best, stood = best_of(search.trials, GOALS[side]), stand_of(search.trials)
            if best is None:
                break
            gained = as_maximisation(GOALS[side], best.figures["accuracy"]) - as_maximisation(GOALS[side], stood)
            idle = 0 if gained > self.tolerance else idle + 1
            if idle == 0:
                pair = dict(best.choice)
            trace[f"after turn {turn}, the {side}'s"] = pair
            if idle == len(GOALS):
                break
        yield Listing("test", {**trace, "winner": pair}, role=Role.TEST)

    def choose(self, trials: Sequence[Trial]) -> Trial | None:  # noqa: ARG002
        """The pair with which the duel ended, which no single trial's figures tell."""
        return None

    def _space(self, side: str) -> Mapping[str, Domain]:
        if side == ATTACKER:
            return attack_space(self.attacks, most_byzantine=self.setting.byzantine)
        return {"rule": ray_tune.choice(list(self.rules))}

    def _starts(self, side: str) -> list[Choice]:
        byzantine = self.setting.byzantine
        return (
            usual_attacks(self.attacks, byzantine=byzantine)
            if side == ATTACKER
            else [{"rule": rule} for rule in self.rules]
        )


def best_of(trials: Sequence[Trial], goal: Goal) -> Trial | None:
    """The best of those that ran to their end; of equals the first, so that who gains nothing stays as he is."""
    measured = [trial for trial in trials if trial.state is State.FINISHED and is_measured(trial, "accuracy")]
    whole = sorted(measured, key=lambda trial: trial.number)
    return max(whole, key=lambda trial: as_maximisation(goal, trial.figures["accuracy"]), default=None)


def stand_of(trials: Sequence[Trial]) -> float:
    """The accuracy of the pair as it stood before the turn, its first trial; NaN where that failed."""
    return next((trial.figures["accuracy"] for trial in trials if trial.number == 0 and trial.figures), float("nan"))
