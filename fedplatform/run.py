"""One experiment from start to report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from fedplatform.data.shards import Manifest
from fedplatform.data.shards import partition as write_partition
from fedplatform.engine import Engine, local_training
from fedplatform.experiment import Experiment
from fedplatform.messages import RoundReport
from fedplatform.report import write_report
from fedplatform.run_folder import RunFolder
from fedplatform.tracking import MlflowTracker
from fedplatform.training import Trainer

Progress = Callable[[int, int], None]
Observer = Callable[[RoundReport], None]


def nobody(*_: object) -> None:
    """An observer that looks away."""


def default_name(experiment: Experiment) -> str:
    """What a run is called that nobody gave a name."""
    return f"{experiment.data_slug}-{experiment.rule_slug}-{experiment.attack_slug}-seed{experiment.seed}"


def partition_data(
    experiment: Experiment, folder: Path, *, data_folder: Path | None = None, progress: Progress = nobody
) -> Manifest:
    """Write the shard of every hospital, and the server's root set, into ``folder``."""
    liars = experiment.who_lies().hospital_ids
    ids = experiment.hospital_ids()
    source = experiment.open_data(data_folder)
    return write_partition(
        source,
        name=experiment.data_slug,
        how=experiment.partition,
        num_hospitals=experiment.hospitals,
        graders=[number for number, name in enumerate(ids) if name not in liars],
        split=experiment.split,
        root_size=experiment.root_size,
        scans=experiment.scans,
        seed=experiment.seed,
        size=experiment.size,
        channels=source.channels,
        folder=folder,
        progress=progress,
    )


def run(
    experiment: Experiment,
    *,
    engine: Engine,
    runs: Path = Path("runs"),
    name: str | None = None,
    data_folder: Path | None = None,
    shards: Path | None = None,
    partitioning: Progress = nobody,
    observer: Observer = nobody,
) -> tuple[RunFolder, list[RoundReport]]:
    """Run an experiment and leave ``runs/<name>/`` behind.

    ``shards`` is a folder of shards that are written already; without it they are written first. A run that fails
    before its first round leaves nothing; one that fails later leaves the rounds that it finished.
    """
    folder = RunFolder.create(runs, name) if name else RunFolder.create_numbered(runs, default_name(experiment))
    reports: list[RoundReport] = []
    try:
        folder.write_settings(experiment.settings())
        if shards is None:
            shards = folder.path / "shards"
            partition_data(experiment, shards, data_folder=data_folder, progress=partitioning)
        else:  # so that whoever goes on with this run finds them
            (folder.path / "shards").symlink_to(os.path.relpath(shards.resolve(), folder.path.resolve()))
        manifest = Manifest.load(shards)
        tracker = MlflowTracker.start(
            experiment_name=experiment.data_slug,
            run_name=folder.path.name,
            settings={key: str(value) for key, value in experiment.settings().items()},
            folder=runs,
        )
        with (
            tracker as tracking,
            engine.launch(experiment, shards, state_folder=folder.state_folder) as federation,
        ):
            for report in federation.reports():
                reports.append(report)
                folder.write_reports(reports)
                tracking.log_round(report)
                observer(report)
            outcome = federation.outcome()
            folder.write_model(outcome.weights, Trainer(local_training(experiment, manifest)).layout)
            if outcome.samples is not None:
                folder.write_samples(outcome.sample_images, outcome.samples, manifest.classes)
            page = write_report(folder.path)
            tracking.log_artifact(folder.path / "experiment.yaml")
            tracking.log_artifact(page)
    except BaseException:
        if not reports:
            shutil.rmtree(folder.path, ignore_errors=True)
        raise
    return folder, reports
