"""The study ``poisoning``: which attack, how strong, by how many attackers, lowers a rule's accuracy most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ray import tune as ray_tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search.sample import Domain

from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.rule_text import parse_rule
from tune.setting import setting_of
from tune.study import FederatedStudy, Goal, halving
from tune.trial import Choice

CURVE = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Strength:
    """How an attack's one setting goes from ``low`` at strength 0 to ``high`` at strength 1.

    ``usual`` is the strength that the literature takes. A ``logarithmic`` setting goes by equal factors. Without a
    setting the attack is as strong as it can be, whatever the strength.
    """

    setting: str = ""
    low: float = 0.0
    high: float = 0.0
    usual: float = 0.5
    logarithmic: bool = True

    def of(self, attack: str, strength: float) -> str:
        """The attack at a strength from 0 to 1, as 'fedplatform run' takes it."""
        if not self.setting:
            return attack
        value = (
            self.low * (self.high / self.low) ** strength
            if self.logarithmic
            else self.low + strength * (self.high - self.low)
        )
        head, _, others = attack.partition("(")
        return f"{head}({', '.join(filter(None, [f'{self.setting}={value:.4g}', others.rstrip(')')]))})"


STRENGTHS: Mapping[str, Strength] = {
    "sign_flip": Strength("scale", 0.1, 10, usual=0.8),
    "sleeper(patience=2)": Strength("scale", 0.1, 10, usual=0.8),
    "scaling": Strength("scale", 1, 100),
    "partial_scaling": Strength("scale", 1, 100, usual=0.35),
    "gaussian_noise": Strength("sigma", 0.001, 1, usual=1.0),
    "label_flip": Strength("fraction", 0.05, 1, usual=1.0, logarithmic=False),
    "alie": Strength("z", 0.1, 10, usual=0.59),
    "ipm": Strength("scale", 0.05, 50, usual=1 / 3),
    "fingerprint_aware": Strength("width", 0.5, 8),
    "min_max": Strength(),
    "min_max(direction='std')": Strength(),
    "min_max(direction='sign')": Strength(),
    "min_sum": Strength(),
}


def attacked(setting: Experiment, choice: Choice, *, rule: str) -> Experiment:
    """A federation under the attack of a choice; a rule that rehearses attacks has never rehearsed this one."""
    attack = str(choice["attack"])
    text = STRENGTHS.get(attack, Strength()).of(attack, float(choice["strength"]))
    # The server does not learn how many lie: its f stays.
    changed = setting.replace(attack=text, byzantine=int(choice["byzantine"]), f=setting.f, quorum=setting.quorum)
    return changed.replace(rule=parse_rule(rule, f=setting.f).without(changed.attack_slug))


def attack_space(attacks: Sequence[str], *, most_byzantine: int) -> Mapping[str, Domain]:
    """Attack, strength, attackers."""
    return {
        "attack": ray_tune.choice(list(attacks)),
        "strength": ray_tune.uniform(0.0, 1.0),
        "byzantine": ray_tune.randint(1, most_byzantine + 1),
    }


def usual_attacks(attacks: Sequence[str], *, byzantine: int) -> list[Choice]:
    """Every attack as the literature has it."""
    return [
        {"attack": attack, "strength": STRENGTHS.get(attack, Strength()).usual, "byzantine": byzantine}
        for attack in attacks
    ]


@dataclass(frozen=True)
class Poisoning(FederatedStudy):
    """The most harmful attack on an aggregation rule.

    A choice is an attack, its strength from 0 to 1 (:data:`STRENGTHS` says of which setting), and how many hospitals
    lie, up to the number that the server is built to withstand. Whether attackers collude is a matter of the attack:
    those of one attacker alone (sign_flip, scaling, noise, label_flip) and those that look at all honest updates
    compete.

    ``base`` is as in :func:`tune.setting.setting_of`. Curves are drawn for ``rule`` and every one of
    ``rules``; without any, none.
    """

    rule: str = "trimmed_mean"
    base: str = ""
    attacks: tuple[str, ...] = tuple(STRENGTHS)
    rules: tuple[str, ...] = ("mean", "median", "trimmed_mean", "trust")
    seed: int = 0

    @property
    def objectives(self) -> Mapping[str, Goal]:
        """The attacker wants honest hospitals to be diagnosed wrongly."""
        return {"accuracy": "min"}

    @property
    def setting(self) -> Experiment:
        """The federation without an attack."""
        return setting_of(self.base, seed=self.seed)

    def space(self) -> Mapping[str, Domain]:
        """Attack, strength, attackers."""
        return attack_space(self.attacks, most_byzantine=self.setting.byzantine)

    def experiment(self, choice: Choice) -> Experiment:
        """The attack against the rule."""
        return attacked(self.setting, choice, rule=str(choice.get("rule", self.rule)))

    def starts(self) -> Sequence[Choice]:
        """Every attack as the literature has it, by as many attackers as there may be."""
        return usual_attacks(self.attacks, byzantine=self.setting.byzantine)

    def references(self) -> Mapping[str, Choice]:
        """Nobody attacks; the attack that most papers begin with."""
        byzantine = self.setting.byzantine
        return {
            "no attack": {"attack": "none", "strength": 0.0, "byzantine": byzantine},
            "usual attack": usual_attacks(["sign_flip"], byzantine=byzantine)[0],
        }

    def scheduler(self) -> TrialScheduler:
        """Rounds are comparable, for all trials have the same schedule; the sleeper has struck by the first look."""
        rounds = self.setting.rounds
        return halving(after=max(3, rounds // 2), steps=rounds)

    def curves(self, winner: Choice) -> Mapping[str, Choice]:
        """The winner's attack from weak to strong, and by ever more attackers, against one rule after another."""
        rules = dict.fromkeys((self.rule, *self.rules) if self.rules else ())
        attack, most = winner["attack"], self.setting.byzantine
        cells: dict[str, Choice] = {}
        for rule in rules:
            if STRENGTHS.get(attack, Strength()).setting:
                for strength in CURVE:
                    cells[f"{rule}, {attack} at {strength:g}"] = {**winner, "rule": rule, "strength": strength}
            for byzantine in range(most + 1):
                cells[f"{rule}, {attack} by {byzantine}"] = {
                    **winner, "rule": rule, "byzantine": byzantine, "attack": attack if byzantine else "none",
                }  # fmt: skip
        return cells
