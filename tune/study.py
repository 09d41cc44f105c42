"""A study: what may be chosen, what a choice is run as, and which figures are to be high or low."""

from __future__ import annotations

import hashlib
import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.sample import Domain

from actors.engine import RayEngine
from actors.placement import GpuShares
from fedplatform.core.specification import plugin_files
from fedplatform.data.splits import Role
from fedplatform.experiments.engine import Engine, InProcessEngine
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.run import partition_data
from fedplatform.experiments.run_folder import MODEL
from tune.phase import Budget, Listing, Phase, Search
from tune.trial import Choice, Figures, State, Trial

Goal = Literal["min", "max"]
SCORE = "score"  # what a scheduler looks at: the first objective, turned so that more is better


@dataclass(frozen=True)
class Workplace:
    """Where trials run: the folder of the shards that they share, and how each brings up its federation.

    ``hosts`` 0 is in the trial's own process; more are Ray actors of a CPU each, in the trial's placement group, which
    share its ``gpus``. Relative paths (a study's ``base`` and ``run``, data in a file) are of the folder ``given_in``.
    """

    folder: Path
    data_folder: Path | None = None
    hosts: int = 0
    gpus: float = 0.0
    given_in: Path | None = None

    def engine(self) -> Engine:
        """What a trial runs its federation on."""
        if not self.hosts:
            return InProcessEngine()
        # In a placement group nothing else may be asked for, or the actors would wait for ever.
        return RayEngine(num_hosts=self.hosts, gpus=GpuShares.within(self.gpus, hosts=self.hosts))

    def shards(self, experiment: Experiment) -> Path:
        """The experiment's shards, written by the first trial that needs them."""
        names = ("data", "size", "scans", "split", "partition", "hospitals", "root_size", "seed")
        settings = experiment.settings()
        parts = [str(settings[name]) for name in names] + list(experiment.adversary().hospital_ids)
        digest = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:12]
        shards = self.folder / digest
        shards.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(shards.with_suffix(".lock")):
            if not shards.exists():
                with tempfile.TemporaryDirectory(dir=shards.parent) as scratch:
                    partition_data(experiment, Path(scratch) / "shards", data_folder=self.data_folder)
                    (Path(scratch) / "shards").replace(shards)
        return shards

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for one trial's state."""
        with tempfile.TemporaryDirectory(prefix="fedplatform-tune-") as folder:
            yield Path(folder)


class Study(ABC):
    """A search over choices; an implementation is a frozen dataclass whose fields are its settings.

    Only validation scans are measured while it searches. What it chose is then measured on test scans, once, beside
    its references.
    """

    @property
    @abstractmethod
    def objectives(self) -> Mapping[str, Goal]:
        """Which figures are to be as high or as low as can be; the first decides where there are several."""

    @abstractmethod
    def space(self) -> Mapping[str, Domain]:
        """What may be chosen: a Ray Tune domain for every name."""

    @abstractmethod
    def steps(self, choice: Choice, place: Workplace, role: Role) -> Iterator[Figures]:
        """Run a choice and measure it on the scans in ``role`` after every step; the last figures count."""

    def experiment(self, choice: Choice) -> Experiment | None:  # noqa: ARG002
        """The choice as 'fedplatform run' takes it; None where the study is of none."""
        return None

    def own_files(self) -> Sequence[Path]:
        """The user's own files behind the study: what its settings name, and whatever was imported from a file."""
        named = [Path(value) for value in vars(self).values() if isinstance(value, str) and value]
        models = [path / MODEL for path in named]  # of the run that is searched over
        return [*(path for path in [*named, *models] if path.is_file()), *plugin_files()]

    def starts(self) -> Sequence[Choice]:
        """Choices that are tried first, such as what the literature takes."""
        return ()

    def references(self) -> Mapping[str, Choice]:
        """Choices beside which the winner is shown: the default, no attack, no defence."""
        return {}

    def curves(self, winner: Choice) -> Mapping[str, Choice]:  # noqa: ARG002
        """Choices that are measured at the end to draw curves through them."""
        return {}

    def scheduler(self) -> TrialScheduler | None:
        """What stops hopeless trials; None runs all to their end."""
        return None

    def files(self, winner: Choice) -> Mapping[str, Mapping[str, object]]:  # noqa: ARG002
        """Settings beside the winner's experiment, by the name of their YAML file."""
        return {}

    def choose(self, trials: Sequence[Trial]) -> Trial | None:
        """The winner of trials that ran to their end: the best by the first objective, the earliest of equals.

        A trial that was not measured by it wins nothing.
        """
        first = next(iter(self.objectives))
        whole = [trial for trial in trials if trial.state is State.FINISHED and is_measured(trial, first)]
        return max(whole, key=lambda trial: self.worth(trial, first), default=None)

    def worth(self, trial: Trial, objective: str) -> float:
        """An objective of a trial turned so that more is better; worst of all where it is not a number."""
        return as_maximisation(self.objectives[objective], trial.figures.get(objective, float("nan")))

    def phases(self, budget: Budget) -> Iterator[Phase]:
        """The parts of the study, one after another: here the search, then its winner and the references on test."""
        search = Search("search", self.space(), self.objectives, budget, starts=self.starts())
        yield search
        yield from self.conclusion(self.choose(search.trials))

    def conclusion(self, winner: Trial | None) -> Iterator[Phase]:
        """What is measured on test scans, once all is chosen."""
        last = {} if winner is None else {f"winner {winner.name}": winner.choice}
        yield Listing("test", {**self.references(), **last}, role=Role.TEST)
        if winner is not None and (cells := self.curves(winner.choice)):
            yield Listing("curve", cells, role=Role.TEST)


class FederatedStudy(Study):
    """A study in which a choice is an :class:`Experiment`; by default the accuracy after its last round counts."""

    @property
    def objectives(self) -> Mapping[str, Goal]:
        """Accuracy of the pooled scans of honest hospitals."""
        return {"accuracy": "max"}

    @abstractmethod
    def experiment(self, choice: Choice) -> Experiment:
        """The choice as 'fedplatform run' takes it."""

    def steps(self, choice: Choice, place: Workplace, role: Role) -> Iterator[Figures]:
        """Train and measure after every round."""
        yield from play(self.experiment(choice), place, role)


def play(experiment: Experiment, place: Workplace, role: Role) -> Iterator[Figures]:
    """Run an experiment and give the accuracy on the scans in ``role`` after every round, and nothing of the others."""
    with (
        place.scratch() as scratch,
        place.engine().launch(experiment, place.shards(experiment), state_folder=scratch) as federation,
    ):
        for report in federation.reports():
            if role is Role.TEST:
                yield {"accuracy": report.accuracy, "macro_f1": report.macro_f1}
            else:
                yield {"accuracy": report.validation_accuracy}


def halving(*, after: int, steps: int) -> TrialScheduler:
    """Successive halving: from the step ``after`` on, and after twice as many, the worse half of all trials is stopped.

    Sound where every trial has the same schedule of ``steps``, so that figures after equally many are comparable, and
    nothing that matters happens only after the first look.
    """
    return ASHAScheduler(
        time_attr="step",
        metric=SCORE,
        mode="max",
        grace_period=after,
        max_t=max(steps - 1, after),  # after its last step nobody is stopped any more
        reduction_factor=2,
        stop_last_trials=False,
    )


class StopIfBeaten(FIFOScheduler):
    """Stops a trial whose score so far is below that of a finished one.

    Sound where a score can only fall from step to step, such as a worst case over ever more attacks: then nothing that
    could still win is stopped.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._best = float("-inf")
        self._last: dict[str, float] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """Stop or go on."""
        if SCORE not in result:
            return str(TrialScheduler.CONTINUE)
        self._last[trial.trial_id] = result[SCORE]
        return str(TrialScheduler.STOP if result[SCORE] < self._best else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:  # noqa: ARG002
        """A trial that ran to its end may be the best."""
        if result.get("is_whole"):
            self._best = max(self._best, self._last.pop(trial.trial_id, float("-inf")))


def is_measured(trial: Trial, objective: str) -> bool:
    """Whether an objective of a trial is a number."""
    return not math.isnan(trial.figures.get(objective, math.nan))


def as_maximisation(goal: Goal, value: float) -> float:
    """A value as one of which more is better; what is not a number is worst of all."""
    if value != value:
        return float("-inf")
    return value if goal == "max" else -value
