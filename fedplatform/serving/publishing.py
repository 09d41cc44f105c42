"""From a run whose defence is trained to a version that can be served."""

from __future__ import annotations

from pathlib import Path

from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.serving.examples import FOLDER, write_examples
from fedplatform.serving.versions import Progress, RunVersions, write_bundles


def published(path: Path, *, progress: Progress = lambda *_: None) -> RunVersions:
    """The versions of the run in ``path``; where there is none yet, the first one is published."""
    versions = RunVersions(path)
    if not versions.numbers():
        publish_run(DefendedRun(path), defence="full", progress=progress)
    return versions


def publish_run(run: DefendedRun, *, defence: str, progress: Progress = lambda *_: None) -> str:
    """Write a new version into the run's folder, scans to try it with beside the bundles, and crown it; its number."""

    def write(folder: Path) -> None:
        write_bundles(run, folder, defence=defence, progress=progress)
        write_examples(run, folder / FOLDER)

    versions = RunVersions(run.path)
    number = versions.add(write)
    versions.crown(number)
    return number
