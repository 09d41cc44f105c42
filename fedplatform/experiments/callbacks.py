"""What listens to a run: a method for each moment of it; the run itself writes, shows and sends nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from fedplatform.core.messages import Predictions, RoundReport
from fedplatform.data.shards import Manifest
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.run_folder import RunFolder
from fedplatform.experiments.tracking import MlflowTracker
from fedplatform.federated.selection import Best
from fedplatform.learning.parameters import ParameterLayout


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A run that is finished: ``weights`` (d,) in the order of ``layout``, and the reports of all its rounds.

    ``best`` is the round that did best on validation scans, with its weights; None where nothing was judged.
    ``sample_images`` (m, c, h, w) uint8 are some of the server's own scans, ``samples`` what the model says of them
    (None without a root set).
    """

    experiment: Experiment
    manifest: Manifest
    reports: tuple[RoundReport, ...]
    weights: np.ndarray
    best: Best | None
    layout: ParameterLayout
    sample_images: np.ndarray
    samples: Predictions | None


class Callback:
    """Listens to a run. Every method does nothing here; override what you need.

    The moments of a run come in this order: ``dealing`` while scans are dealt to hospitals, ``weights_loaded`` where it
    starts from given weights, ``started`` once, ``round_finished`` after each round, ``finished`` once, and ``closed``
    at the end, whatever happened.

    >>> import fedplatform as fp
    >>> class Accuracies(fp.Callback):
    ...     def round_finished(self, reports):
    ...         print(f"round {reports[-1].round_number} of {len(reports)} so far")
    >>> small = {"data": "lesions", "size": 16, "scans": 120, "hospitals": 3, "root_size": 0}
    >>> result = fp.run(**small, byzantine=0, rule="mean", rounds=1, callbacks=[Accuracies()])
    round 1 of 1 so far
    """

    def dealing(self, done: int, total: int) -> None:
        """So many of all scans are dealt to hospitals."""

    def weights_loaded(self, words: str) -> None:
        """Given weights fit the network; one line says what was loaded, what is new and what was not used."""

    def started(self, experiment: Experiment, earlier: Sequence[RoundReport]) -> None:
        """Hospitals and server are up; ``earlier`` are the rounds of a launch before, where a run is resumed."""

    def round_finished(self, reports: Sequence[RoundReport]) -> None:
        """One more round is done; ``reports`` are those of all rounds so far, the newest last."""

    def finished(self, run: TrainedRun) -> None:
        """All rounds are done."""

    def closed(self, error: BaseException | None) -> None:
        """The run is over; ``error`` is what ended it, None where it was finished."""


class EachRound(Callback):
    """Calls a function with the report of each round."""

    def __init__(self, function: Callable[[RoundReport], object]) -> None:
        self._function = function

    def round_finished(self, reports: Sequence[RoundReport]) -> None:
        """Hand on the newest report."""
        self._function(reports[-1])


class Recorder(Callback):
    """Writes a run into its folder: figures after every round, the model and samples at the end."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def round_finished(self, reports: Sequence[RoundReport]) -> None:
        """``rounds.parquet`` and ``hospitals.parquet``."""
        self._folder.write_reports(reports)

    def finished(self, run: TrainedRun) -> None:
        """``global.safetensors``, ``best.safetensors`` where an earlier round was better, and ``samples.npz``."""
        self._folder.write_reports(run.reports)
        best, last = run.best, run.reports[-1].round_number
        earlier = best.weights if best and best.round_number < last else None
        self._folder.write_model(run.weights, run.layout, best=earlier)
        if run.samples is not None:
            self._folder.write_samples(run.sample_images, run.samples, run.manifest.classes)


class ReportPage(Callback):
    """Writes ``report.html`` into the folder of a finished run."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def finished(self, run: TrainedRun) -> None:  # noqa: ARG002
        """Draw the page from what the folder holds."""
        from fedplatform.experiments.report import write_report

        write_report(self._folder.path)


class Mlflow(Callback):
    """Sends a run's settings, figures and files to MLflow; a failure there is one warning and never ends a run."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._tracker: MlflowTracker | None = None

    def started(self, experiment: Experiment, earlier: Sequence[RoundReport]) -> None:
        """Open a run in MLflow, or go on with the one of a launch before."""
        folder = self._folder
        self._tracker = MlflowTracker.start(
            experiment_name=experiment.data_slug,
            run_name=folder.path.name,
            settings={key: str(value) for key, value in experiment.settings().items()},
            folder=folder.path.parent,
            run_id=folder.tracked_as,
        )
        if self._tracker.run_id:
            folder.write_tracked_as(self._tracker.run_id)
        self._tracker.catch_up(earlier)

    def round_finished(self, reports: Sequence[RoundReport]) -> None:
        """Send the round's figures."""
        if self._tracker:
            self._tracker.log_round(reports[-1])

    def finished(self, run: TrainedRun) -> None:  # noqa: ARG002
        """Copy the settings, and the report where there is one."""
        for name in ("experiment.yaml", "report.html"):
            if self._tracker and (self._folder.path / name).is_file():
                self._tracker.log_artifact(self._folder.path / name)

    def closed(self, error: BaseException | None) -> None:
        """Close the run in MLflow as finished or failed."""
        if self._tracker:
            self._tracker.__exit__(None if error is None else type(error), error, None)
            self._tracker = None


@contextmanager
def closing(callbacks: Sequence[Callback]) -> Iterator[None]:
    """Tell all callbacks of the end of a run, and of the error that ended it."""
    try:
        yield
    except BaseException as error:
        for callback in callbacks:
            callback.closed(error)
        raise
    for callback in callbacks:
        callback.closed(None)
