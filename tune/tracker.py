"""A study's way to MLflow: a run for the study, and in it a run for each trial."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fedplatform.experiments.tracking import MlflowTracker
from tune.phase import Phase
from tune.trial import State, Trial

RUN_FILE = "mlflow_run"  # holds the study's run, so that a second call goes on with it


class StudyTracker:
    """Logs a study, an observer of it; like :class:`MlflowTracker`, whose failure is a warning."""

    def __init__(self, folder: Path, study: str, objectives: Sequence[str]) -> None:
        self._folder, self._study, self._objectives = folder, study, objectives
        self._children: dict[str, MlflowTracker] = {}

    def __enter__(self) -> Self:
        return self

    def begin(self, phase: Phase) -> None:  # noqa: ARG002
        """Open the study's run where it is not open yet."""
        if hasattr(self, "_parent"):
            return
        file = self._folder / RUN_FILE
        self._parent = MlflowTracker.start(
            experiment_name="tune",
            run_name=self._folder.name,
            settings={"study": self._study, "objectives": ", ".join(self._objectives)},
            folder=self._folder.parent,
            run_id=(file.read_text() if file.exists() else "") or None,
        )
        file.write_text(self._parent.run_id)

    def update(self, trial: Trial) -> None:
        """A trial began, made a step, or is over."""
        if trial.name not in self._children:
            self._children[trial.name] = MlflowTracker.start(
                experiment_name="tune",
                run_name=trial.title,
                settings={name: str(value) for name, value in trial.choice.items()} | {"phase": trial.phase},
                folder=self._folder.parent,
                parent=self._parent.run_id,
            )
        child = self._children[trial.name]
        if not trial.is_over and trial.steps:
            child.log_figures(trial.figures, step=len(trial.steps))
        if trial.is_over:
            failed = RuntimeError if trial.state is State.FAILED else None
            self._children.pop(trial.name).__exit__(failed, None, None)

    def log_artifact(self, path: Path) -> None:
        """Copy a file to the study's run."""
        if hasattr(self, "_parent"):
            self._parent.log_artifact(path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children.values():
            child.__exit__(KeyboardInterrupt, None, None)
        if hasattr(self, "_parent"):
            self._parent.__exit__(kind, error, trace)
