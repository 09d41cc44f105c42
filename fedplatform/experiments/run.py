"""One experiment from start to report."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from fedplatform.core.messages import RoundReport
from fedplatform.data.shards import MANIFEST, Manifest
from fedplatform.data.shards import partition as write_partition
from fedplatform.experiments.checkpoint import require_storable
from fedplatform.experiments.engine import Engine, local_training
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.report import write_report
from fedplatform.experiments.run_folder import RunFolder
from fedplatform.experiments.tracking import MlflowTracker
from fedplatform.learning.training import Trainer

Progress = Callable[[int, int], None]
Observer = Callable[[RoundReport], None]

log = logging.getLogger(__name__)


def nobody(*_: object) -> None:
    """An observer that looks away."""


def default_name(experiment: Experiment) -> str:
    """What a run is called that nobody gave a name."""
    return f"{experiment.data_slug}-{experiment.rule_slug}-{experiment.attack_slug}-seed{experiment.seed}"


def partition_data(
    experiment: Experiment, folder: Path, *, data_folder: Path | None = None, progress: Progress = nobody
) -> Manifest:
    """Write the shard of every hospital, and the server's root set, into ``folder``."""
    byzantine = experiment.adversary().hospital_ids
    ids = experiment.inside
    source = experiment.open_data(data_folder)
    return write_partition(
        source,
        name=experiment.data_slug,
        how=experiment.partition,
        num_hospitals=len(ids),
        graders=[number for number, name in enumerate(ids) if name not in byzantine],
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
    resumable: bool = True,
) -> tuple[RunFolder, list[RoundReport]]:
    """Run an experiment and leave ``runs/<name>/`` behind.

    ``shards`` is a folder of shards that are written already; without it they are written first. A run that fails
    before its first round leaves nothing; one that fails later leaves the rounds that it finished, and :func:`resume`
    goes on with it. One that is not ``resumable`` writes no checkpoints.
    """
    if resumable:
        require_storable(experiment.rule, hospitals=experiment.hospitals, has_root=experiment.root_size > 0)
    folder = RunFolder.create(runs, name) if name else RunFolder.create_numbered(runs, default_name(experiment))
    reports: list[RoundReport] = []
    try:
        folder.write_settings(experiment.settings())
        with folder.alone():
            if shards is None:
                shards = folder.path / "shards"
                partition_data(experiment, shards, data_folder=data_folder, progress=partitioning)
            else:  # so that whoever goes on with this run finds them
                (folder.path / "shards").symlink_to(os.path.relpath(shards.resolve(), folder.path.resolve()))
            checkpoints = folder.checkpoints if resumable else None
            _conduct(
                experiment, folder, reports, engine=engine, shards=shards, checkpoints=checkpoints, observer=observer
            )
    except BaseException as error:
        if not (reports or folder.has_rounds):
            shutil.rmtree(folder.path, ignore_errors=True)
        elif resumable:
            error.add_note(f"go on with: {folder.how_to_resume}")
        raise
    return folder, reports


def resume(
    folder: RunFolder,
    *,
    engine: Engine,
    data_folder: Path | None = None,
    shards: Path | None = None,
    partitioning: Progress = nobody,
    observer: Observer = nobody,
    resumed: Callable[[Sequence[RoundReport]], object] = nobody,
) -> list[RoundReport]:
    """Go on with a run that was stopped, from its newest intact checkpoint; the result is that of an unbroken run.

    Its last unfinished round is done anew. ``resumed`` is told of the rounds that were finished before. Raises
    :class:`ExperimentError` where another process works on the run, or its checkpoints cannot be used.
    """
    experiment = Experiment.from_settings(folder.read_settings())
    reports: list[RoundReport] = []
    with folder.alone():
        try:
            shards = shards or folder.path / "shards"
            if not (shards / MANIFEST).exists():  # stopped while scans were dealt
                partition_data(experiment, shards, data_folder=data_folder, progress=partitioning)
            _conduct(
                experiment,
                folder,
                reports,
                engine=engine,
                shards=shards,
                checkpoints=folder.checkpoints,
                observer=observer,
                resumed=resumed,
            )
        except BaseException as error:
            error.add_note(f"go on with: {folder.how_to_resume}")
            raise
    return reports


def _conduct(
    experiment: Experiment,
    folder: RunFolder,
    reports: list[RoundReport],
    *,
    engine: Engine,
    shards: Path,
    checkpoints: Path | None,
    observer: Observer,
    resumed: Callable[[Sequence[RoundReport]], object] = nobody,
) -> None:
    """All rounds that are still to come, and what stands at the end of a run; ``reports`` is filled as they come."""
    manifest = Manifest.load(shards)
    tracker = MlflowTracker.start(
        experiment_name=experiment.data_slug,
        run_name=folder.path.name,
        settings={key: str(value) for key, value in experiment.settings().items()},
        folder=folder.path.parent,
        run_id=folder.tracked_as,
    )
    with (
        tracker as tracking,
        engine.launch(experiment, shards, state_folder=folder.state_folder, checkpoints=checkpoints) as federation,
    ):
        if tracking.run_id:
            folder.write_tracked_as(tracking.run_id)
        earlier = federation.earlier()
        for complaint in earlier.refused:
            log.warning("%s", complaint)
        reports += earlier.reports
        tracking.catch_up(reports)
        resumed(reports)
        for report in federation.reports():
            reports.append(report)
            folder.write_reports(reports)
            tracking.log_round(report)
            observer(report)
        outcome = federation.outcome()
        folder.write_reports(reports)
        folder.write_model(outcome.weights, Trainer(local_training(experiment, manifest)).layout)
        if outcome.samples is not None:
            folder.write_samples(outcome.sample_images, outcome.samples, manifest.classes)
        page = write_report(folder.path)
        tracking.log_artifact(folder.path / "experiment.yaml")
        tracking.log_artifact(page)
    folder.forget_rounds()
