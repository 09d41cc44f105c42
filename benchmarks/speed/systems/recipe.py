"""The recipe ``br35h_robust`` and its defence, cut to a few scans and rounds, with the time of every phase."""

from __future__ import annotations

import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.speed.contestant import Job
from fedplatform.core.messages import RoundReport
from fedplatform.data.lesions import Lesions
from fedplatform.defence.settings import DefenceSettings
from fedplatform.experiments.callbacks import Callback
from fedplatform.experiments.defence.train import defend
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment, load_settings
from fedplatform.experiments.run import partition_data, run

RECIPE = "br35h_robust"
ROUNDS = 2
SHOWN = 15  # functions of the profile


class Phases:
    """CPU seconds of what was done since the last look, by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def done(self, phase: str) -> None:
        now = time.process_time()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


class Watched(Callback):
    """Notes the time of the phases of a run."""

    def __init__(self, phases: Phases) -> None:
        self._phases = phases

    def dealing(self, done: int, total: int) -> None:
        self._phases.done("scans to shards")

    def round_finished(self, reports: Sequence[RoundReport]) -> None:
        self._phases.done("classifier")


def small_recipe(data: str, scans: int) -> tuple[Experiment, DefenceSettings, dict[str, float]]:
    """The recipe in small, and how many times the whole one is longer in each phase, as to rounds."""
    settings = load_settings(RECIPE)
    whole, defence = Experiment.from_settings(settings), DefenceSettings()
    small = {"data": data, "scans": scans} if data else {"data": Lesions(patients_per_hospital=scans // 10)}
    experiment = Experiment.from_settings({**settings, **small, "rounds": ROUNDS, "root_size": min(100, scans // 5)})
    stages = {
        "autoencoder": defence.autoencoder_rounds,
        "purifier": defence.purifier_rounds,
        "tuned": defence.tuning_rounds,
        "sensor": defence.sensor_rounds,
    }
    counts = {f"{stage}_rounds" if stage != "tuned" else "tuning_rounds": 1 for stage in stages}
    longer = {"classifier": whole.rounds / ROUNDS, **{stage: float(rounds) for stage, rounds in stages.items()}}
    return experiment, DefenceSettings.from_settings({**defence.settings(), **counts}), longer


@contextmanager
def recipe(data: str, scans: int) -> Iterator[Callable[[], dict[str, float]]]:
    """Trains all of it once; ``whole_`` is what a phase costs in the whole recipe, as to rounds."""
    experiment, defence, longer = small_recipe(data, scans)

    def trained() -> dict[str, float]:
        phases = Phases()

        def after_stage_round(stage: str, rounds: int, report: RoundReport) -> None:
            phases.done(stage)

        with tempfile.TemporaryDirectory(prefix="speed-recipe-") as folder:
            folder_of_run, _ = run(
                experiment,
                engine=InProcessEngine(),
                runs=Path(folder),
                name="recipe",
                resumable=False,
                callbacks=[Watched(phases)],
            )
            phases.done("report and tracking")
            defend(folder_of_run.path, defence, engine=InProcessEngine(), observer=after_stage_round)
            phases.done("report and tracking")
        whole = {f"whole_{name}": seconds * longer.get(name, 1.0) for name, seconds in phases.seconds.items()}
        return {**phases.seconds, **whole}

    yield trained


@contextmanager
def profile(data: str, scans: int) -> Iterator[Callable[[], dict[str, float]]]:
    """The functions in which a round of the classifier's training spends its CPU time, without what they call.

    It is the last round, in which every step is on attacked scans.
    """
    experiment, _, _ = small_recipe(data, scans)
    with tempfile.TemporaryDirectory(prefix="speed-recipe-") as folder:
        shards = Path(folder) / "shards"
        partition_data(experiment, shards)
        with InProcessEngine().launch(experiment, shards, state_folder=Path(folder) / "state") as federation:
            reports = federation.reports()
            for _ in range(ROUNDS - 1):
                next(reports)

            def profiled() -> dict[str, float]:
                with cProfile.Profile(time.process_time) as profiler:
                    next(reports)
                stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
                inside = sorted(((entry[2], place) for place, entry in stats.items()), reverse=True)[:SHOWN]
                total = sum(entry[2] for entry in stats.values())
                return {f"profile_{name}": seconds / total for seconds, (_, _, name) in inside}

            yield profiled


JOBS: dict[str, Job] = {"recipe": recipe, "profile": profile}
