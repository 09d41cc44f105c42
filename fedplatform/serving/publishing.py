"""From a run whose defence is trained to a version that can be served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.serving.bundle import Exports, Networks, save
from fedplatform.serving.example_scans import write_examples
from fedplatform.serving.examples import FOLDER
from fedplatform.serving.suspicion import without_finding
from fedplatform.serving.versions import Progress, RunVersions


def published(path: Path, *, progress: Progress = lambda *_: None) -> RunVersions:
    """The versions of the run in ``path``; where there is none yet, the first one is published."""
    versions = RunVersions(path)
    if not versions.numbers():
        publish_run(DefendedRun(path), defence="full", progress=progress)
    return versions


def publish_run(
    run: DefendedRun, *, defence: str, healthy: str | None = None, progress: Progress = lambda *_: None
) -> str:
    """Write a new version into the run's folder, with scans to try beside the bundles, and promote it; its number.

    ``healthy`` is of :func:`write_bundles`.
    """

    def write(folder: Path) -> None:
        write_bundles(run, folder, defence=defence, healthy=healthy, progress=progress)
        write_examples(run, folder / FOLDER)

    versions = RunVersions(run.path)
    number = versions.add(write)
    versions.promote(number)
    return number


def write_bundles(
    run: DefendedRun, folder: Path, *, defence: str, healthy: str | None = None, progress: Progress = lambda *_: None
) -> None:
    """A bundle of every hospital of a run whose defence can be fitted, each in a folder of its name.

    ``healthy`` is the class of scans without a finding; without it the class that is called so, if there is one.
    """
    experiment, settings, stored = run.experiment, run.settings, run.manifest.settings
    networks = Networks(
        classifier=experiment.model,
        autoencoder=settings.autoencoder,
        sensor=settings.sensor,
        purifier=settings.purifier,
        sampler=settings.sampler,
    )
    hospitals = run.tested
    exports: Exports = {}
    kinds = run.kind_gates()
    for number, hospital_id in enumerate(hospitals):
        progress(hospital_id, number, len(hospitals))
        save(
            replace(run.hospital(hospital_id).defended(defence), kind=kinds.get(hospital_id)),
            folder / hospital_id,
            hospital_id=hospital_id,
            defence=defence,
            classes=run.manifest.classes,
            without_finding=without_finding(run.manifest.classes, named=healthy),
            size=stored.size,
            channels=stored.channels,
            origins=run.manifest.origins,
            networks=networks,
            exports=exports,
        )
