"""A run's figures on their way to MLflow: a run for the federation, a nested one for each hospital."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock

from fedplatform.core.extras import advice
from fedplatform.core.messages import HospitalRecord, HospitalState, RoundReport

ROUND_METRICS = (
    "accuracy",
    "macro_f1",
    "auc",
    "loss",
    "quadratic_kappa",
    "mean_absolute_error",
    "attack_success",
    "validation_accuracy",
    "train_seconds",
    "aggregate_seconds",
    "evaluate_seconds",
)
HOSPITAL_METRICS = (
    "norm",
    "cosine",
    "weight",
    "accuracy",
    "loss",
    "train_seconds",
    "trust",
    "reputation",
    "reconstruction_error",
    "root_cosine",
    "peer_cosine",
    "sign_agreement",
    "shapley",
)
# A commit to SQLite costs tens of milliseconds, so hospitals wait for company; few enough rounds that little is lost
# with a killed process, and far below the 1,000 metrics that MLflow takes in one call.
ROUNDS_IN_A_BATCH = 10
LONGEST_START_S = 120.0  # that a process waits for another to make the tables of a new database

log = logging.getLogger(__name__)


@dataclass
class MlflowTracker:
    """Logs the rounds of one run to MLflow; its failure is one warning and never the end of a training.

    Made by :meth:`start` and used as a context manager. Leaving it sends what is still waiting
    and closes every run as FINISHED, or as FAILED where an exception passes through.
    """

    folder: Path
    _client: Any = None  # mlflow.tracking.MlflowClient
    _has_failed: bool = False
    _experiment_id: str = ""
    _run_id: str = ""
    _waiting: dict[str, list[tuple[int, HospitalRecord]]] = field(default_factory=dict)  # with the time in ms
    _hospital_runs: dict[str, str] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        *,
        experiment_name: str,
        run_name: str,
        settings: Mapping[str, str],
        folder: Path,
        tracking_uri: str | None = None,
        parent: str = "",
        run_id: str | None = None,
    ) -> Self:
        """Open a run with ``settings`` as its parameters, or go on with the one called ``run_id``.

        A setting that has changed since, such as the number of rounds, becomes a tag of its name.
        A new one lies within the run ``parent`` where there is one.

        ``folder`` is the folder of all runs. Without ``tracking_uri`` the variable MLFLOW_TRACKING_URI decides, and
        without it figures go to ``mlflow.db`` and files to ``mlflow-artifacts/``, both in that folder.
        """
        tracker = cls(folder)
        begin = partial(tracker._open, experiment_name, run_name, settings, tracking_uri, parent, run_id)
        tracker._attempt("start", begin)
        return tracker

    @property
    def run_id(self) -> str:
        """By which MLflow knows the run; empty where it could not be opened."""
        return self._run_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._attempt("close", partial(self._close, "FAILED" if kind else "FINISHED"))

    def log_round(self, report: RoundReport) -> None:
        """Send the federation's figures at once, the hospitals' every few rounds."""
        self._attempt("log a round", partial(self._log_round, report))

    def catch_up(self, reports: Sequence[RoundReport]) -> None:
        """Send what is not there yet of the rounds of earlier launches."""
        if reports:
            self._attempt("catch up", partial(self._catch_up, reports))

    def log_artifact(self, path: Path) -> None:
        """Copy a file to the federation's run."""
        self._attempt("log a file", lambda: self._client.log_artifact(self._run_id, str(path)))

    def log_figures(self, figures: Mapping[str, float], *, step: int) -> None:
        """Send figures that are of no round."""
        self._attempt(
            "log figures",
            lambda: self._client.log_batch(self._run_id, metrics=_metrics(figures, step, _milliseconds())),
        )

    def _open(
        self,
        experiment_name: str,
        run_name: str,
        settings: Mapping[str, str],
        tracking_uri: str | None,
        parent: str,
        run_id: str | None,
    ) -> None:
        # Set before MLflow is imported, which reads them then; an unreachable server must cost seconds, not minutes.
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        runs = self.folder.resolve()
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs / 'mlflow.db'}"
        local = uri.startswith("sqlite:")
        # Who comes first makes the tables or the experiment; two who come first at once would both fail.
        place_of_lock = Path(uri.removeprefix("sqlite:///") + ".lock")
        with FileLock(place_of_lock, timeout=LONGEST_START_S) if local else nullcontext():
            client = MlflowClient(uri)
            experiment = client.get_experiment_by_name(experiment_name)
            if experiment is None:
                # MLflow would put the files of a local database under the working directory.
                place = (runs / "mlflow-artifacts").as_uri() if local else None
                self._experiment_id = client.create_experiment(experiment_name, artifact_location=place)
            else:
                self._experiment_id = experiment.experiment_id
        self._client = client
        if run_id is not None:
            self._go_on(run_id, settings)
            return
        tags = {"mlflow.parentRunId": parent} if parent else None
        self._run_id = client.create_run(self._experiment_id, run_name=run_name, tags=tags).info.run_id
        client.log_batch(self._run_id, params=[Param(key, value) for key, value in settings.items()])

    def _go_on(self, run_id: str, settings: Mapping[str, str]) -> None:
        self._client.update_run(run_id, status="RUNNING")
        self._run_id = run_id
        logged = self._client.get_run(run_id).data.params
        for key, value in settings.items():  # MLflow's parameters are for ever; a run that goes on may have more rounds
            if logged.get(key, value) != value:
                self._client.set_tag(run_id, key, value)
        nested = self._client.search_runs([self._experiment_id], f"tags.mlflow.parentRunId = '{run_id}'")
        self._hospital_runs = {run.info.run_name: run.info.run_id for run in nested}

    def _catch_up(self, reports: Sequence[RoundReport]) -> None:
        done = self._last_step(self._run_id, "train_seconds")
        graded = min((self._last_step(known, "weight") for known in self._hospital_runs.values()), default=0)
        for report in reports:
            self._log_round(report, federation=report.round_number > done, hospitals=report.round_number > graded)

    def _last_step(self, run_id: str, metric: str) -> int:
        """The last round of which a run has a figure; 0 where it has none."""
        return max((figure.step for figure in self._client.get_metric_history(run_id, metric)), default=0)

    def _log_round(self, report: RoundReport, *, federation: bool = True, hospitals: bool = True) -> None:
        now = _milliseconds()
        figures: dict[str, float] = {name: getattr(report, name) for name in ROUND_METRICS}
        for state in HospitalState:
            figures[f"hospitals_{state}"] = sum(record.state == state for record in report.hospitals)
        if federation:
            self._client.log_batch(self._run_id, metrics=_metrics(figures, report.round_number, now))
        for record in report.hospitals if hospitals else ():
            self._waiting.setdefault(record.hospital_id, []).append((now, record))
        if max(map(len, self._waiting.values()), default=0) >= ROUNDS_IN_A_BATCH:
            self._flush()

    def _close(self, status: str) -> None:
        self._flush()
        for run_id in (*self._hospital_runs.values(), self._run_id):
            self._client.set_terminated(run_id, status)

    def _flush(self) -> None:
        from mlflow.entities import RunTag

        for hospital_id, waiting in self._waiting.items():
            if hospital_id not in self._hospital_runs:
                tags = {"mlflow.parentRunId": self._run_id}
                run = self._client.create_run(self._experiment_id, run_name=hospital_id, tags=tags)
                self._hospital_runs[hospital_id] = run.info.run_id
            metrics = []
            for now, record in waiting:
                figures = {name: getattr(record, name) for name in HOSPITAL_METRICS}
                metrics += _metrics(figures, record.round_number, now)
            last = waiting[-1][1]
            tags = {"is_byzantine": str(last.is_byzantine).lower(), "last_state": last.state.value}
            self._client.log_batch(
                self._hospital_runs[hospital_id],
                metrics=metrics,
                tags=[RunTag(key, value) for key, value in tags.items()],
            )
        self._waiting.clear()

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        """Run the action; its error is one warning and the end of tracking. Does nothing once tracking has ended."""
        if self._has_failed:
            return
        try:
            action()
        except Exception as error:  # whatever a database, a network or MLflow may raise
            self._has_failed = True
            reason = " ".join(str(error).split())
            if isinstance(error, ModuleNotFoundError):
                reason = advice(error) or reason
            log.warning("MLflow could not %s, the run goes on untracked: %s: %s", what, type(error).__name__, reason)


def _metrics(figures: Mapping[str, float], round_number: int, milliseconds: int) -> list[Any]:
    """MLflow metrics of one round; NaN, which says that there is no figure, is left out."""
    from mlflow.entities import Metric

    return [Metric(name, value, milliseconds, round_number) for name, value in figures.items() if not math.isnan(value)]


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000
