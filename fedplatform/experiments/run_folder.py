"""What a run leaves on disk, each file whole or not there at all."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import save_file

from fedplatform.core.files import alone_in, write_whole
from fedplatform.core.messages import Predictions, RoundReport
from fedplatform.core.rounds import PREDICTIONS, predictions_table, reports_of, tables_of
from fedplatform.core.specification import nearest
from fedplatform.core.withdrawal import Withdrawal, read_withdrawals
from fedplatform.experiments.experiment import ExperimentError
from fedplatform.experiments.weights import BEST, GLOBAL, START
from fedplatform.federated.cohort import ATTACKS
from fedplatform.federated.hospital_state import EARLIER
from fedplatform.learning.parameters import ParameterLayout

SETTINGS, MODEL, TRACKED = "experiment.yaml", GLOBAL, "mlflow-run"
LOG = "run.log"


class RunFolder:
    """``runs/<name>/``: experiment.yaml, rounds.parquet, hospitals.parquet, models, samples, report."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, runs: Path, name: str) -> Self:
        """Make a new folder. Raises :class:`ExperimentError` where the name is taken or the place not writable."""
        path = runs / name
        if not name or Path(name).name != name or name.startswith("."):
            raise ExperimentError(f"a run name is a plain folder name, got {name!r}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise ExperimentError(f"run {name!r} exists in {runs}; choose another --name or remove it") from None
        except OSError as error:
            raise ExperimentError(f"cannot make run folder {path}: {error.strerror}") from error
        return cls(path)

    @classmethod
    def create_numbered(cls, runs: Path, name: str) -> Self:
        """Make a new folder called ``name``, or ``name-2``, ``name-3``... where that is taken."""
        number = 1
        while (runs / (name if number == 1 else f"{name}-{number}")).exists():
            number += 1
        return cls.create(runs, name if number == 1 else f"{name}-{number}")

    @classmethod
    def reopen(cls, runs: Path, name: str, *, rounds: int | None = None, patience: int | None = None) -> Self:
        """The folder of a run that was stopped, or of a finished one that goes on until ``rounds`` are done.

        One that its patience ended goes on with another ``patience``.

        Raises :class:`ExperimentError` where nothing is left to do, the run kept no checkpoint, or is not there.
        """
        folder = cls(runs / name)
        if not (folder.path / SETTINGS).is_file():
            raise ExperimentError(f"no run {name!r} in {runs}{nearest(name, folders_in(runs))}")
        done, is_finished = folder.rounds_done, (folder.path / MODEL).exists()
        if is_finished and not done:
            raise ExperimentError(f"run {name!r} is finished and kept no checkpoint; start a new one with --weights")
        if rounds is not None and rounds <= done:
            raise ExperimentError(f"run {name!r} has done {done} rounds; --rounds is more than that, got {rounds}")
        settings = folder.read_settings()
        waits = int(str(settings.get("patience", 0))) if patience is None else patience
        if is_finished and waits and (best := folder.read_reports()[-1].best_round) and done - best >= waits:
            raise ExperimentError(
                f"run {name!r} ended after {done} rounds, {done - best} without a better one on validation scans; "
                f"--patience {done - best + 1} or more goes on, and --patience 0 until the last"
            )
        if is_finished and rounds is None and done >= int(str(settings["rounds"])):
            raise ExperimentError(f"run {name!r} is finished after {done} rounds; --rounds N goes on until round N")
        return folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else works on this run meanwhile. Raises :class:`ExperimentError` where somebody does already."""
        with alone_in(self.path, what=f"run {self.path.name!r}"):
            yield

    @property
    def checkpoints(self) -> Path:
        """Where the server keeps its last rounds; of a finished run, the last."""
        return self.path / "checkpoints"

    @property
    def has_rounds(self) -> bool:
        """Whether there is a round to go on after."""
        return self.rounds_done > 0

    @property
    def rounds_done(self) -> int:
        """The round of the newest checkpoint; 0 where there is none."""
        return max((int(path.name.removeprefix("round-")) for path in self.checkpoints.glob("round-*")), default=0)

    @property
    def has_any_round(self) -> bool:
        """Whether a round of this run was finished, with or without a checkpoint."""
        return self.has_rounds or (self.path / "rounds.parquet").exists()

    def how_to_resume(self, options: Sequence[str] = ()) -> str:
        """The command that goes on with this run; ``options`` are words that it was given and needs again."""
        runs = self.path.parent
        where = () if runs == Path("runs") else ("--runs", str(runs))
        return shlex.join(["fedplatform", "run", "--resume", self.path.name, *where, *options])

    @property
    def start(self) -> Path:
        """The weights that the run began with, where it was given some."""
        return self.path / START

    @property
    def state_folder(self) -> Path:
        """Where hospitals keep their personal state."""
        return self.path / "hospitals"

    @property
    def withdrawals(self) -> tuple[Withdrawal, ...]:
        """Which hospitals have withdrawn, in order."""
        return read_withdrawals(self.path)

    @property
    def withdrawn(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(one.hospital_id for one in self.withdrawals)

    def write_settings(self, settings: Mapping[str, object]) -> None:
        """The resolved experiment; ``fedplatform run`` takes this file."""
        text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        self._whole(SETTINGS, lambda path: path.write_text(text))

    def read_settings(self) -> dict[str, object]:
        """The resolved experiment."""
        settings: dict[str, object] = yaml.safe_load((self.path / SETTINGS).read_text())
        return settings

    @property
    def tracked_as(self) -> str | None:
        """The id of this run in MLflow, where it has one."""
        file = self.path / TRACKED
        return file.read_text() if file.exists() else None

    def write_tracked_as(self, run_id: str) -> None:
        """Keep that id for a later launch."""
        self._whole(TRACKED, lambda path: path.write_text(run_id))

    def forget_rounds(self) -> None:
        """Remove what only a run under way needs: all checkpoints but the last, and earlier states that lie here."""
        newest = f"round-{self.rounds_done:06d}"
        old = [path for path in self.checkpoints.glob("*-*") if path.name != newest]
        for folder in (*old, self.state_folder / EARLIER, self.state_folder / ATTACKS / EARLIER):
            shutil.rmtree(folder, ignore_errors=True)

    def write_reports(self, reports: Sequence[RoundReport]) -> None:
        """``rounds.parquet`` and ``hospitals.parquet``, and the round's ``predictions.parquet``; anew every round."""
        for name, table in tables_of(reports).items():
            self._whole(name, lambda path, table=table: pq.write_table(table, path))  # type: ignore[misc]
        if reports[-1].tests:
            table = predictions_table(reports[-1])
            self._whole(PREDICTIONS, lambda path: pq.write_table(table, path))

    def read_reports(self) -> tuple[RoundReport, ...]:
        """The reports of all rounds so far. Raises :class:`ExperimentError` where there are none."""
        try:
            tables = [pq.read_table(self.path / name) for name in ("rounds.parquet", "hospitals.parquet")]
        except (OSError, pa.ArrowException) as error:
            raise ExperimentError(f"{self.path} holds no rounds of a run") from error
        return reports_of(*tables)

    def write_model(self, weights: np.ndarray, layout: ParameterLayout, *, best: np.ndarray | None = None) -> None:
        """The shared part of the model as ``global.safetensors``; that of a better round as ``best.safetensors``."""
        (self.path / BEST).unlink(missing_ok=True)
        for name, vector in ((MODEL, weights), *([(BEST, best)] if best is not None else [])):
            tensors = {name: torch.from_numpy(value) for name, value in layout.unflatten(vector).items()}
            self._whole(name, lambda path, tensors=tensors: save_file(tensors, path))  # type: ignore[misc]

    def write_samples(self, images: np.ndarray, predictions: Predictions, classes: Sequence[str]) -> None:
        """A few of the server's own scans, never a hospital's, with what the final model says of them."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez_compressed(
                    file,
                    images=images,
                    labels=predictions.labels,
                    probabilities=predictions.probabilities,
                    classes=np.array(classes, dtype=str),
                )

        self._whole("samples.npz", write)

    def _whole(self, name: str, write: Callable[[Path], object]) -> None:
        try:
            write_whole(self.path / name, write)
        except OSError as error:
            raise ExperimentError(f"cannot write {self.path / name}: {error.strerror or error}") from error


def folders_in(runs: Path) -> list[str]:
    """The names of the runs in a folder."""
    return sorted(path.parent.name for path in runs.glob(f"*/{SETTINGS}"))
