"""A trial, one choice out of a search space with what came of it, and the ledger that keeps all trials of a study."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedplatform.core.files import write_whole
from fedplatform.data.splits import Role
from fedplatform.experiments.experiment import ExperimentError

Choice = Mapping[str, Any]
"""A value for every name of a search space."""

Figures = dict[str, float]
"""What was measured of a choice, by name."""


class State(StrEnum):
    """What became of a trial."""

    RUNNING = "running"  # begun; after a crash it is begun anew
    FINISHED = "finished"
    STOPPED = "stopped"  # hopeless: its figures are of the step at which it was given up
    FAILED = "failed"


@dataclass(frozen=True)
class Trial:
    """One choice and what came of it, step by step.

    A step is a round of a federation, an attack that is met, or the whole, as the study has it. ``phase`` is the part
    of the study to which it belongs, ``label`` what a person calls it where it was not drawn but set. ``role`` says
    which scans measure it.
    """

    phase: str
    number: int
    choice: Choice
    role: Role = Role.VALIDATION
    label: str = ""
    state: State = State.RUNNING
    steps: tuple[Figures, ...] = ()
    error: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """``search-0007``; of what was set, its label: two that are called alike are the same."""
        return f"{self.phase}-{self.number:04d}" if not self.label else f"{self.phase}-{_plain(self.label)}"

    @property
    def title(self) -> str:
        """How a person calls it."""
        return self.label or self.name

    @property
    def figures(self) -> Figures:
        """What was measured last."""
        return self.steps[-1] if self.steps else {}

    @property
    def is_over(self) -> bool:
        """Whether it need not be run again."""
        return self.state is not State.RUNNING


class Ledger:
    """All trials of a study, a JSON file each, whole at any moment; what stands in it as over is never run again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._trials = {trial.name: trial for trial in map(_read, sorted(folder.glob("*.json")))}

    def __iter__(self) -> Iterator[Trial]:
        return iter(list(self._trials.values()))

    def of(self, phase: str) -> list[Trial]:
        """All trials of a part of the study, in the order of their numbers."""
        return sorted((trial for trial in self if trial.phase == phase), key=lambda trial: trial.number)

    def keep(self, trial: Trial) -> Trial:
        """Write a trial down."""
        text = json.dumps(asdict(trial), indent=1)
        write_whole(self._folder / f"{trial.name}.json", lambda path: path.write_text(text))
        self._trials[trial.name] = trial
        return trial


def _read(path: Path) -> Trial:
    try:
        stored = json.loads(path.read_text())
        trial = Trial(**{**stored, "steps": tuple(stored["steps"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ExperimentError(f"{path} is no trial; remove it to run it anew") from error
    return replace(trial, role=Role(trial.role), state=State(trial.state))


def _plain(label: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".=" else "_" for letter in label)
