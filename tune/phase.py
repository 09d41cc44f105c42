"""The parts of a study: a search, which Optuna guides, or a list of choices that are set."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import optuna
from optuna.trial import TrialState, create_trial
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from fedplatform.core.seeding import numpy_generator
from fedplatform.data.splits import Role
from tune.trial import Choice, State, Trial

Sampler = Literal["tpe", "random"]
MOST_FAILURES = 20  # in a row, after which the fault is not the choice's


@dataclass(frozen=True)
class Budget:
    """How long a search goes on: ``trials``, each with a schedule of its own, drawn by ``sampler`` from ``seed``."""

    trials: int
    seed: int = 0
    sampler: Sampler = "tpe"


class Phase(Protocol):
    """A part of a study. Trials are asked for, run elsewhere, and told, in whatever order they end."""

    @property
    def name(self) -> str: ...

    @property
    def total(self) -> int:
        """How many trials it has in all."""
        ...

    @property
    def trials(self) -> Sequence[Trial]:
        """Those that are over."""
        ...

    def recall(self, known: Sequence[Trial]) -> None:
        """What earlier processes have left of this part: once, before anything is asked for."""
        ...

    def ask(self) -> Trial | None:
        """The next trial, or None where none is left."""
        ...

    def tell(self, trial: Trial) -> None:
        """What became of a trial."""
        ...

    def close(self) -> None:
        """Ask no more: the time is over."""
        ...


class Listing:
    """Choices that are set, each by its label."""

    def __init__(self, name: str, choices: Mapping[str, Choice], *, role: Role) -> None:
        self.name, self.total = name, len(choices)
        self.trials: list[Trial] = []
        self._left = [
            Trial(name, number, choice, role, label) for number, (label, choice) in enumerate(choices.items())
        ]

    def recall(self, known: Sequence[Trial]) -> None:
        """Those that are over are not asked for, unless a label has since come to stand for another choice."""
        wanted = {trial.name: dict(trial.choice) for trial in self._left}
        over = {trial.name: trial for trial in known if trial.is_over and wanted.get(trial.name) == dict(trial.choice)}
        self.trials += [over[trial.name] for trial in self._left if trial.name in over]
        self._left = [trial for trial in self._left if trial.name not in over]

    def ask(self) -> Trial | None:
        """The next of the list."""
        return self._left.pop(0) if self._left else None

    def tell(self, trial: Trial) -> None:
        """Keep it."""
        self.trials.append(trial)

    def close(self) -> None:
        """A list is short and goes on to its end."""


class Search:
    """A search that Optuna guides: its tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), or chance.

    ``fixed`` are values that every choice has beside those of the space. Only validation scans measure its trials.
    Optuna's study is made anew by every process from the trials that are over, so nothing else can get lost; a trial
    that was under way when a process died is run again, with the same choice and under the same number.
    """

    def __init__(
        self,
        name: str,
        space: Mapping[str, Domain],
        objectives: Mapping[str, Literal["min", "max"]],
        budget: Budget,
        *,
        starts: Sequence[Choice] = (),
        fixed: Choice | None = None,
    ) -> None:
        self.name, self.total = name, budget.trials
        self.trials: list[Trial] = []
        self._objectives, self._fixed, self._budget = objectives, dict(fixed or {}), budget
        # Chance shall be chance: it gets no start.
        self._starts = [] if budget.sampler == "random" else list(starts)
        self._space: dict[str, Any] = OptunaSearch.convert_search_space(dict(space))
        self._again: list[Trial] = []
        self._numbers = 0
        self._open: dict[str, optuna.Trial] = {}
        self.optuna_study = self._begin()

    def _begin(self) -> optuna.Study:
        # A process that goes on must not draw what the one before it drew, so the stream depends on how much is known.
        seed = int(numpy_generator(self._budget.seed, "tune", self.name, self._numbers).integers(2**31))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler: optuna.samplers.BaseSampler = (
                optuna.samplers.RandomSampler(seed=seed)
                if self._budget.sampler == "random"
                # All names together, for an attack and its strength belong to each other; and what is being tried
                # counts as bad until it is known, lest the same be tried twice at once.
                else optuna.samplers.TPESampler(
                    seed=seed, n_startup_trials=max(8, len(self._starts)), multivariate=True, constant_liar=True
                )
            )
        directions: list[Literal["minimize", "maximize"]] = [
            "maximize" if goal == "max" else "minimize" for goal in self._objectives.values()
        ]
        return optuna.create_study(directions=directions, sampler=sampler)

    def recall(self, known: Sequence[Trial]) -> None:
        """Teach Optuna what is known, and take up what was left."""
        self._numbers = max((trial.number + 1 for trial in known), default=0)
        self.optuna_study = self._begin()
        for trial in sorted(known, key=lambda trial: trial.number):
            if trial.is_over:
                self.trials.append(trial)
                self.optuna_study.add_trial(self._finished(trial))
            else:
                self._again.append(Trial(self.name, trial.number, trial.choice))
        for start in self._starts[self._numbers :]:
            self.optuna_study.enqueue_trial({name: start[name] for name in self._space})

    def ask(self) -> Trial | None:
        """The next choice, while there is budget; after many failures in a row there is none."""
        recent = self.trials[-MOST_FAILURES:]
        if len(recent) == MOST_FAILURES and all(trial.state is State.FAILED for trial in recent):
            return None
        if self._again:
            return self._again.pop(0)
        if self._numbers >= self.total:
            return None
        drawn = self.optuna_study.ask(self._space)
        trial = Trial(self.name, self._numbers, {**drawn.params, **self._fixed})
        self._open[trial.name] = drawn
        self._numbers += 1
        return trial

    def tell(self, trial: Trial) -> None:
        """Let the next choice know; a trial that was stopped counts by the step that it reached, as Optuna has it."""
        self.trials.append(trial)
        drawn, finished = self._open.pop(trial.name, None), self._finished(trial)
        if drawn is None:
            self.optuna_study.add_trial(finished)
            return
        for step, value in finished.intermediate_values.items():
            drawn.report(value, step)
        self.optuna_study.tell(drawn, finished.values, state=finished.state)

    def _finished(self, trial: Trial) -> optuna.trial.FrozenTrial:
        """The trial as Optuna has it; one that failed is worse than all that reached a step."""
        values = [trial.figures.get(name, math.nan) for name in self._objectives]
        is_whole = trial.state is State.FINISHED and not any(map(math.isnan, values))
        first = next(iter(self._objectives))
        met = {number: step.get(first, math.nan) for number, step in enumerate(trial.steps, start=1)}
        return create_trial(
            state=TrialState.COMPLETE if is_whole else TrialState.PRUNED,
            params={name: trial.choice[name] for name in self._space},
            distributions=self._space,
            values=values if is_whole else None,
            # Optuna takes values along the way only where there is one objective.
            intermediate_values={} if len(self._objectives) > 1 else {k: v for k, v in met.items() if v == v},
        )

    def close(self) -> None:
        """Ask no more."""
        self.total = self._numbers
