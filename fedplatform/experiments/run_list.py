"""The runs in a folder, and what has become of each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedplatform.core.files import is_busy
from fedplatform.core.specification import nearest
from fedplatform.experiments.experiment import ExperimentError
from fedplatform.experiments.run_folder import MODEL, SETTINGS, RunFolder, folders_in


@dataclass(frozen=True)
class ListedRun:
    """One run, ``under way``, ``finished``, ``stopped`` or ``unreadable``; figures are of its newest round."""

    name: str
    state: str
    rounds_done: int
    rounds: int
    balanced_accuracy: float | None
    auc: float | None
    changed: str
    megabytes: float


def list_runs(runs: Path) -> Iterator[ListedRun]:
    """Every run in a folder, by name."""
    for name in sorted(folders_in(runs)):
        yield _listed(RunFolder(runs / name))


def remove_run(runs: Path, name: str) -> float:
    """Delete a run's folder, with its defence, its checkpoints and its shards; the megabytes that it took.

    Raises :class:`ExperimentError` where there is no such run, or another process works on it.
    """
    folder = RunFolder(runs / name)
    if not (folder.path / SETTINGS).is_file():
        raise ExperimentError(f"no run {name!r} in {runs}{nearest(name, folders_in(runs))}")
    with folder.alone():
        megabytes = _megabytes(folder.path)
        shutil.rmtree(folder.path)
    return megabytes


def _listed(folder: RunFolder) -> ListedRun:
    newest, rounds = None, 0
    try:
        rounds = int(str(folder.read_settings().get("rounds", 0)))
        if (folder.path / "rounds.parquet").exists():
            newest = folder.read_reports()[-1]
        state = "under way" if is_busy(folder.path) else "finished" if (folder.path / MODEL).exists() else "stopped"
    except (ExperimentError, LookupError, OSError, TypeError, ValueError):  # damaged, or of another version
        state = "unreadable"
    changed = max(path.stat().st_mtime for path in [folder.path, *folder.path.glob("*.parquet")])
    return ListedRun(
        name=folder.path.name,
        state=state,
        rounds_done=newest.round_number if newest else 0,
        rounds=rounds,
        balanced_accuracy=newest.balanced_accuracy if newest else None,
        auc=newest.auc if newest else None,
        changed=datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds"),
        megabytes=round(_megabytes(folder.path), 1),
    )


def _megabytes(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6
