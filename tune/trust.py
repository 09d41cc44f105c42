"""The study ``trust``: settings of the trust rule that make its worst case, and not its mean, as good as can be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ray import tune as ray_tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search.sample import Domain

from fedplatform.data.splits import Role
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.rule_text import parse_rule
from tune.setting import setting_of
from tune.study import Goal, StopIfBeaten, Study, Workplace, play
from tune.trial import Choice, Figures

TRUST: Choice = {  # the defaults of the rule
    "scorer": "robust",
    "length": 1.0,
    "direction": 1.0,
    "harm": 1.0,
    "strangeness": 1.0,
    "fall": 0.4,
    "rise": 0.2,
    "reputation_power": 1.0,
    "smoothing": 0.5,
    "clip": 2.0,
    "root_steps": 3,
    "tau": 0.5,
    "miss": 3.0,
    "false_alarm": 2.0,
}
OF_SCORER: Mapping[str, tuple[str, ...]] = {
    "robust": ("length", "direction", "harm", "strangeness"),
    "network": (),
    "policy": ("miss", "false_alarm"),
    "hybrid": ("tau",),
}
OF_RULE = ("fall", "rise", "reputation_power", "smoothing", "clip", "root_steps")


def trust_space(scorers: Sequence[str]) -> Mapping[str, Domain]:
    """Weights of the fingerprint's features, reputation's memory, clipping, descent, scorer and its own settings."""
    return {
        "scorer": ray_tune.choice(list(scorers)),
        **{name: ray_tune.loguniform(0.4, 2.5) for name in OF_SCORER["robust"]},
        "fall": ray_tune.uniform(0.1, 0.9),
        "rise": ray_tune.uniform(0.05, 0.6),
        "reputation_power": ray_tune.choice([0.0, 1.0, 2.0]),
        "smoothing": ray_tune.uniform(0.2, 1.0),
        "clip": ray_tune.loguniform(1.0, 4.0),
        "root_steps": ray_tune.randint(0, 7),
        "tau": ray_tune.uniform(0.0, 1.0),
        "miss": ray_tune.uniform(1.0, 6.0),
        "false_alarm": ray_tune.uniform(0.5, 4.0),
    }


def trust_rule(choice: Choice) -> str:
    """The rule as 'fedplatform run --rule' takes it; what the scorer has no use for is left out."""

    def told(name: str, settings: Sequence[str]) -> str:
        said = [f"{setting}={_short(choice[setting])}" for setting in settings]
        return f"{name}({', '.join(said)})" if said else name

    scorer = str(choice["scorer"])
    return f"{told(scorer, OF_SCORER[scorer])}+{told('trust', OF_RULE)}"


def _short(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}" if value % 1 else f"{value:.1f}"


@dataclass(frozen=True)
class Trust(Study):
    """The settings of the rule ``trust`` under which the attack that harms it most harms it least.

    A choice meets ``attacks`` one after another, of which it has rehearsed none, each in a federation of its own; what
    counts is the lowest accuracy. ``base`` is as in :func:`tune.setting.setting_of`; ``bench:br35h`` is the data set
    on which the defaults were judged. ``scorers`` that learn cost several times the CPU time of ``robust``.
    """

    base: str = ""
    attacks: tuple[str, ...] = ("sign_flip", "min_max", "alie", "ipm", "label_flip", "none")
    scorers: tuple[str, ...] = ("robust", "network", "policy", "hybrid")
    seed: int = 0

    @property
    def objectives(self) -> Mapping[str, Goal]:
        """The worst case over the attacks."""
        return {"worst_accuracy": "max"}

    def space(self) -> Mapping[str, Domain]:
        """All settings of the rule and of its scorers."""
        return trust_space(self.scorers)

    def steps(self, choice: Choice, place: Workplace, role: Role) -> Iterator[Figures]:
        """The worst case so far, after every attack."""
        figures: Figures = {}
        for attack in self.attacks:
            *_, last = play(self._against(choice, attack), place, role)
            figures[attack] = last["accuracy"]
            yield {"worst_accuracy": min(figures.values()), **figures}

    def experiment(self, choice: Choice) -> Experiment:
        """The rule where nobody attacks."""
        return self._against(choice, "none")

    def starts(self) -> Sequence[Choice]:
        """The defaults."""
        return [{**TRUST, "scorer": scorer} for scorer in self.scorers]

    def references(self) -> Mapping[str, Choice]:
        """The defaults; a federation that has no defence is the study ``poisoning`` of the mean."""
        return {"default": dict(TRUST)}

    def scheduler(self) -> TrialScheduler:
        """A worst case can only fall: what is below the best already cannot win."""
        return StopIfBeaten()

    def _against(self, choice: Choice, attack: str) -> Experiment:
        setting = setting_of(self.base, seed=self.seed).replace(attack=attack)
        return setting.replace(rule=parse_rule(trust_rule(choice), f=setting.f).without(setting.attack_slug))
