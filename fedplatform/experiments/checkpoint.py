"""The whole state of a federation on the server's disk: a checkpoint a round, each one whole or not there at all."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedplatform.core.files import write_durably, write_folder_durably
from fedplatform.core.messages import RoundReport
from fedplatform.core.rounds import reports_of, tables_of
from fedplatform.core.storable import Arrays, NotStorableError, from_plain, to_plain
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.federated.aggregation import Aggregator, try_rule
from fedplatform.federated.hospital_state import KEPT_ROUNDS, Launch, SupersededError
from fedplatform.federated.selection import Best
from fedplatform.federated.server import FederationState

STATE, TENSORS, SUMS = "state.json", "state.safetensors", "SHA256SUMS"
LAUNCH = "launch"  # the file that counts launches
ROOT, MEMORY, OPTIMISER = "root", "memory", "optimiser"
AVERAGE, BEST = "average", "best"
FREE = ("rounds", "patience", "device")  # what a run may go on with otherwise than it began
DAMAGED = "damaged"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a federation after a round, and the reports of that round and of all before it."""

    state: FederationState
    reports: tuple[RoundReport, ...]


@dataclass(frozen=True)
class CheckpointFolder:
    """Where the checkpoints of a run lie, and of which experiment they must be: its settings, as JSON has them."""

    path: Path
    experiment: Mapping[str, object]

    @classmethod
    def of(cls, path: Path, experiment: Experiment) -> Self:
        """The folder for an experiment; asked where the experiment was read, for only there all of it has a name."""
        return cls(path.resolve(), _as_json(experiment.settings()))

    def require_same(self, settings: Mapping[str, object], *, checkpoint: Path) -> None:
        """Raise :class:`ExperimentError` where a checkpoint was written with other settings.

        One that it lacks, because the software did not have it then, had the value that is its default now. The number
        of rounds, the patience and the device may differ: a run can go on for more than it began with, and on another
        machine.
        """
        found = {**_as_json(Experiment.defaults()), **settings}
        for name in {**self.experiment, **settings}:
            if name not in FREE and found.get(name) != self.experiment.get(name):
                raise ExperimentError(
                    f"{checkpoint} is of another experiment than the experiment.yaml of this run: "
                    f"{name}={found.get(name)!r} there, {self.experiment.get(name)!r} here"
                )


def _as_json(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings as they come back from a file."""
    plain: dict[str, object] = json.loads(json.dumps(dict(settings)))
    return plain


class Checkpoints:
    """The last rounds of one run in a folder, one folder each; made by :meth:`open`.

    A checkpoint is ``round-NNNNNN/``: every array in one safetensors file, the rounds so far as two Parquet tables, the
    rest in JSON, and ``SHA256SUMS`` over them, as sha256sum writes it. Nothing in it is pickle. ``found`` is the newest
    that is intact; ``refused`` says in words what was wrong with newer ones.
    """

    def __init__(self, folder: CheckpointFolder, rule: Aggregator) -> None:
        self._place = folder
        self._folder = folder.path
        self._kinds: Sequence[type] = rule.memory_kinds
        self.found: Checkpoint | None = None
        self.refused: tuple[str, ...] = ()
        self.launch = Launch(0, 0)

    @classmethod
    def open(cls, folder: CheckpointFolder, rule: Aggregator) -> Self:
        """Look for the newest intact checkpoint, set damaged ones aside, and count one more launch.

        Raises :class:`ExperimentError` where there are checkpoints and none is intact, where they are of another
        experiment, or the folder cannot be written.
        """
        checkpoints = cls(folder, rule)
        checkpoints._find()
        found = checkpoints.found
        launch = Launch(checkpoints._counted() + 1, found.state.round_number if found else 0)
        try:
            write_durably(folder.path / LAUNCH, str(launch.number).encode())
            for unfinished in folder.path.glob(".round-*.partial"):
                shutil.rmtree(unfinished)
            for number in checkpoints._numbers():
                if number > launch.resumed_from:  # damaged; hospitals go back behind it, so it must never come back
                    checkpoints._of(number).rename(folder.path / f"{DAMAGED}-{launch.number}-{number:06d}")
        except OSError as error:
            raise ExperimentError(f"cannot write to {folder.path}: {error.strerror or error}") from error
        checkpoints.launch = launch
        return checkpoints

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one more checkpoint, and remove the oldest.

        Raises :class:`ExperimentError` where it cannot be written (those before it stay), and
        :class:`SupersededError` where another launch has taken over.
        """
        state = checkpoint.state
        if self._counted() != self.launch.number:
            raise SupersededError(f"{self._folder} is of launch {self._counted()}, this is launch {self.launch.number}")
        path = self._of(state.round_number)
        try:
            write_folder_durably(path, self._files(checkpoint))
        except NotStorableError as error:
            raise ExperimentError(f"the memory of the aggregation rule cannot be stored: {error}") from error
        except OSError as error:
            raise ExperimentError(
                f"cannot write checkpoint {path}: {error.strerror or error}; what was written before is intact"
            ) from error
        for old in (*map(self._of, self._numbers()[:-KEPT_ROUNDS]), *self._folder.glob(f"{DAMAGED}-*")):
            shutil.rmtree(old, ignore_errors=True)

    def _find(self) -> None:
        refused = []
        for number in reversed(self._numbers()):
            try:
                self.found = self._read(self._of(number))
                break
            except ExperimentError:
                raise
            except _DAMAGE as error:
                refused.append(f"checkpoint {self._of(number)} is damaged: {' '.join(str(error).split())}")
        self.refused = tuple(refused)
        if refused and self.found is None:
            raise ExperimentError(f"no checkpoint in {self._folder} is intact: {'; '.join(refused)}")

    def _files(self, checkpoint: Checkpoint) -> dict[str, bytes]:
        state = checkpoint.state
        tree, arrays = to_plain(state.memory, kinds=self._kinds, name=MEMORY)
        arrays |= {"weights": state.weights, "previous_delta": state.previous_delta}
        arrays |= {f"{ROOT}/{name}": value.numpy() for name, value in state.root_personal.items()}
        arrays |= {f"{OPTIMISER}/{name}": value for name, value in state.moments.items()}
        written = {"round": state.round_number, "experiment": dict(self._place.experiment), "memory": tree}
        if state.announced:
            written["announced"] = dict(state.announced)
        if state.average is not None:
            arrays[AVERAGE] = state.average
        if state.best is not None:
            written["best"] = [state.best.round_number, *state.best.score]
            if state.best.weights is not state.answering:
                arrays[BEST] = state.best.weights
        files = {STATE: json.dumps(written, indent=1).encode(), TENSORS: save(_in_rows(arrays))}
        for name, table in tables_of(checkpoint.reports).items():
            sink = io.BytesIO()
            pq.write_table(table, sink)
            files[name] = sink.getvalue()
        sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
        return {**files, SUMS: sums.encode()}

    def _read(self, path: Path) -> Checkpoint:
        files: dict[str, bytes] = {}
        for line in (path / SUMS).read_text().splitlines():
            digest, _, name = line.partition("  ")
            files[name] = (path / name).read_bytes()
            if hashlib.sha256(files[name]).hexdigest() != digest:
                raise ValueError(f"the SHA-256 of {name} is not the one in {SUMS}")
        written, arrays = json.loads(files[STATE]), load(files[TENSORS])
        self._place.require_same(dict(written["experiment"]), checkpoint=path)
        tables = (pq.read_table(io.BytesIO(files[name])) for name in ("rounds.parquet", "hospitals.parquet"))
        personal, moments = (
            {name.removeprefix(part): value.copy() for name, value in arrays.items() if name.startswith(part)}
            for part in (f"{ROOT}/", f"{OPTIMISER}/")
        )
        average = arrays[AVERAGE].copy() if AVERAGE in arrays else None
        best = None
        if "best" in written:
            round_number, *score = written["best"]
            answering = arrays["weights"] if average is None else average
            best = Best(round_number, (score[0], score[1]), arrays.get(BEST, answering).copy())
        state = FederationState(
            round_number=written["round"],
            weights=arrays["weights"].copy(),
            previous_delta=arrays["previous_delta"].copy(),
            memory=from_plain(written["memory"], arrays, kinds=self._kinds),
            root_personal={name: torch.from_numpy(value) for name, value in personal.items()},
            moments=moments,
            average=average,
            best=best,
            announced=written.get("announced", {}),
        )
        return Checkpoint(state, reports_of(*tables))

    def _of(self, round_number: int) -> Path:
        return self._folder / f"round-{round_number:06d}"

    def _numbers(self) -> list[int]:
        return sorted(int(path.name.removeprefix("round-")) for path in self._folder.glob("round-*"))

    def _counted(self) -> int:
        file = self._folder / LAUNCH
        return int(file.read_text()) if file.exists() else 0


_DAMAGE = (OSError, ValueError, KeyError, TypeError, SafetensorError, pa.ArrowException)


def require_storable(rule: Aggregator, *, hospitals: int, has_root: bool) -> None:
    """Raise :class:`ExperimentError` for a rule whose memory no checkpoint could hold, before anybody trains."""
    try:
        kinds = rule.memory_kinds
        tried = try_rule(rule, hospitals=hospitals, has_root=has_root)
        to_plain(tried.memory if tried is not None else None, kinds=kinds, name=MEMORY)
    except (NotStorableError, ValueError) as error:
        raise ExperimentError(
            f"the memory of {type(rule).__name__} cannot be stored in checkpoints: {error}; "
            "docs/extending.md says how a rule lets its memory be stored"
        ) from error


def _in_rows(arrays: Arrays) -> Arrays:
    """The arrays in the row-major layout that a file holds."""
    return {name: array.copy(order="C") for name, array in arrays.items()}
