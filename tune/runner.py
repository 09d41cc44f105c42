"""A study on Ray Tune, from its first trial to its report; a second call goes on where the first stopped."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from ray import tune as ray_tune
from ray.exceptions import RayError
from ray.tune.error import TuneError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from actors.cluster.joining import join
from actors.own_code import by_value
from actors.placement import GpuShares
from fedplatform.core.files import alone_in, claim, claim_files
from fedplatform.data.splits import Role
from fedplatform.experiments.experiment import ExperimentError
from tune.phase import Budget, Phase, Search
from tune.study import SCORE, Study, Workplace, as_maximisation
from tune.trial import Figures, Ledger, State, Trial

FIGURE = "figure/"
RETRIES = 2  # of a trial whose process died; an error in it is an answer and is not tried again
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger has all of it
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths are of the folder in which the command was given
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # only trials of a search have a score
}


class Observer(Protocol):
    """Who is told how a study goes."""

    def begin(self, phase: Phase) -> None: ...

    def update(self, trial: Trial) -> None:
        """A trial began, made a step, or is over."""
        ...


@dataclass(frozen=True)
class Resources:
    """What a trial needs: ``hosts`` actors of a CPU each beside its own, and a share of a GPU.

    ``address`` is of a Ray cluster, or ``local`` to start one here; at most ``jobs`` trials run at once.
    """

    jobs: int = 2
    hosts: int = 0
    gpus: float = 0.0
    address: str = "local"

    def placement(self) -> ray_tune.PlacementGroupFactory:
        """The bundles of a trial: its own process first."""
        share = GpuShares.within(self.gpus, hosts=self.hosts)
        bundles = [share.server, *[share.host] * self.hosts]
        return ray_tune.PlacementGroupFactory([{"CPU": 1.0, **({"GPU": gpus} if gpus else {})} for gpus in bundles])


def run(
    study: Study,
    budget: Budget,
    *,
    folder: Path,
    name: str,
    resources: Resources = Resources(),
    seconds: float = float("inf"),
    data_folder: Path | None = None,
    observers: Sequence[Observer] = (),
) -> Ledger:
    """Run a study in ``folder``; what was run there before is not run again.

    After ``seconds`` no more is searched; what runs then is finished, and winner and references are measured. ``name``
    is the study's own text, by which a folder is known. Raises :class:`ExperimentError` where the folder is another
    study's, or another process is at it.
    """
    claim(folder, {"study": name, "seed": budget.seed, "sampler": budget.sampler}, what="study")
    claim_files(folder, study.own_files(), what="study")
    with alone_in(folder, what=f"the study in {folder}"), started(resources, study):
        ledger = Ledger(folder / "trials")
        scheduler = study.scheduler()
        planner = Planner(study.phases(budget), ledger, scheduler, study, observers, until=time.monotonic() + seconds)
        # Beside the study, so that several on the same data share what one has written.
        place = Workplace(
            folder.resolve().parent / "tune-shards",
            data_folder.resolve() if data_folder else None,
            resources.hosts,
            resources.gpus,
            given_in=Path.cwd(),
        )
        scratch = folder.resolve() / ".tune"
        try:
            ray_tune.Tuner(
                ray_tune.with_resources(
                    ray_tune.with_parameters(TrialProcess, study=study, place=place), resources.placement()
                ),
                tune_config=ray_tune.TuneConfig(
                    search_alg=planner,
                    scheduler=scheduler,
                    num_samples=sys.maxsize,  # the planner says when there is nothing left
                    max_concurrent_trials=resources.jobs,
                    reuse_actors=True,  # to import torch costs more than a small trial
                ),
                run_config=ray_tune.RunConfig(
                    name=str(time.time_ns()),
                    storage_path=str(scratch),
                    failure_config=ray_tune.FailureConfig(max_failures=RETRIES),
                    # A trial is short, and begins anew where it is cut off.
                    checkpoint_config=ray_tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                    verbose=0,
                ),
            ).fit()
        except (RayError, TuneError) as error:
            raise ExperimentError(f"Ray Tune stopped: {' '.join(str(error).split())}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if planner.error is not None:
            raise planner.error
    return ledger


@contextmanager
def started(resources: Resources, study: Study) -> Iterator[None]:
    """Ray, with room for a trial. Raises :class:`ExperimentError` where no node could ever hold one."""
    os.environ.update(QUIET)
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's workers would give way to whatever else runs here
    own = not ray.is_initialized()
    if own:
        join(resources.address)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what went wrong stands in the ledger
    by_value(study)
    try:
        for kind, needed in resources.placement().required_resources.items():
            there = ray.cluster_resources().get(kind, 0.0)
            if needed > there:
                raise ExperimentError(f"a trial needs {needed:g} {kind}, the cluster has {there:g}")
        yield
    finally:
        if own:
            ray.shutdown()


class Planner(Searcher):
    """Hands the trials of a study's phases to Ray Tune one after another, and keeps what comes of them."""

    def __init__(
        self,
        phases: Iterator[Phase],
        ledger: Ledger,
        scheduler: TrialScheduler | None,
        study: Study,
        observers: Sequence[Observer],
        *,
        until: float,
    ) -> None:
        super().__init__()
        self.error: Exception | None = None
        self._phases, self._ledger, self._scheduler, self._study = phases, ledger, scheduler, study
        self._observers, self._until = observers, until
        self._live: dict[str, tuple[Trial, float]] = {}
        self._phase: Phase | None = None

    def suggest(self, trial_id: str) -> Any:
        """The next trial; None while the next phase waits for one that runs."""
        try:
            trial = self._next()
        except Exception as error:  # Tune would swallow it and wait for ever
            self.error = error
            return Searcher.FINISHED
        if trial is None:
            return None if self._live else Searcher.FINISHED
        self._live[trial_id] = (self._keep(trial), time.monotonic())
        return {"choice": dict(trial.choice), "role": str(trial.role), "searches": isinstance(self._phase, Search)}

    def _next(self) -> Trial | None:
        while True:
            if self._phase is not None:
                if time.monotonic() > self._until:
                    self._phase.close()
                trial = self._phase.ask()
                if trial is not None or self._live:
                    return trial
            self._phase = next(self._phases, None)
            if self._phase is None:
                return None
            known = self._ledger.of(self._phase.name)
            self._phase.recall(known)
            self._remind(known)
            for observer in self._observers:
                observer.begin(self._phase)

    def _remind(self, known: Sequence[Trial]) -> None:
        """Tell the scheduler of the trials of earlier processes, so that it judges as if it had seen them."""
        if self._scheduler is None or not isinstance(self._phase, Search):
            return
        for trial in known:
            if not trial.is_over or not trial.steps:
                continue
            past = TuneTrial("past", stub=True)
            controller: Any = None  # neither scheduler looks at it
            self._scheduler.on_trial_add(controller, past)
            result: dict[str, object] = {}
            for number, figures in enumerate(trial.steps, start=1):
                result = {"step": number, SCORE: score(self._study, figures), "is_whole": False}
                self._scheduler.on_trial_result(controller, past, result)
            result["is_whole"] = trial.state is State.FINISHED
            self._scheduler.on_trial_complete(controller, past, result)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A step: a trial whose process died begins with the first again."""
        trial, since = self._live[trial_id]
        # Tune flattens what a trial reports before anybody sees it.
        figures = {name.removeprefix(FIGURE): value for name, value in result.items() if name.startswith(FIGURE)}
        if figures:
            steps = (*trial.steps[: result["step"] - 1], figures)
            trial = replace(trial, steps=steps)
            self._live[trial_id] = trial, since
            self._tell(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The end, of whichever kind; the step at which a trial is stopped is told here alone."""
        result = result or {}
        self.on_trial_result(trial_id, result)
        trial, since = self._live.pop(trial_id)
        said = f"its process died {RETRIES + 1} times" if error else str(result.get("error", ""))
        state = State.FAILED if said else State.FINISHED if result.get("is_whole") else State.STOPPED
        trial = self._keep(replace(trial, state=state, error=said, seconds=time.monotonic() - since))
        assert self._phase is not None
        self._phase.tell(trial)

    def _keep(self, trial: Trial) -> Trial:
        self._tell(self._ledger.keep(trial))
        return trial

    def _tell(self, trial: Trial) -> None:
        for observer in self._observers:
            observer.update(trial)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it all. Tune wants a file."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __getstate__(self) -> dict[str, object]:
        # Tune pickles a tuner for a restoration that the ledger makes needless, and a plan cannot be pickled.
        return {}


def score(study: Study, figures: Figures) -> float:
    """What a scheduler sees of a step."""
    first, goal = next(iter(study.objectives.items()))
    return as_maximisation(goal, figures.get(first, float("nan")))


class TrialProcess(ray_tune.Trainable):
    """The process in which trials run one after another, a step a call."""

    def setup(self, config: dict[str, Any], study: Study, place: Workplace) -> None:  # type: ignore[override]
        """Before the first trial; what follows the config comes from ``with_parameters``."""
        torch.set_num_threads(1)
        if place.given_in is not None and place.given_in.is_dir():  # on a cluster a worker stands elsewhere
            os.chdir(place.given_in)
        self._study, self._place = study, place
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Before every further trial."""
        self.cleanup()
        self._searches = new_config["searches"]
        self._done = 0
        self._figures: Figures = {}
        self._steps = self._study.steps(new_config["choice"], self._place, Role(new_config["role"]))
        return True

    def step(self) -> dict[str, Any]:
        """One more step; an error is an answer, too, and the end of the trial."""
        try:
            self._figures = {name: float(value) for name, value in next(self._steps).items()}
        except StopIteration:
            return {"done": True, "is_whole": True, "step": self._done}
        except Exception as error:
            return {"done": True, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        self._done += 1
        scored = {SCORE: score(self._study, self._figures)} if self._searches else {}
        return {**{f"{FIGURE}{name}": value for name, value in self._figures.items()}, "step": self._done, **scored}

    def cleanup(self) -> None:
        """Leave a trial that was stopped: its generator closes what it has opened."""
        steps = getattr(self, "_steps", None)
        if steps is not None:
            steps.close()
