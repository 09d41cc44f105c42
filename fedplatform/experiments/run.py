"""One experiment from start to end: :func:`train` in any engine, :func:`run` and :func:`resume` in a run folder."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedplatform.core.logs import kept_in
from fedplatform.core.messages import TRAINING_RAISED, WITHOUT_EFFECT, HospitalState, RoundReport
from fedplatform.core.tasks import TASKS
from fedplatform.core.withdrawal import Withdrawal
from fedplatform.data.shards import MANIFEST, Manifest, Progress, delete_scans
from fedplatform.data.shards import partition as write_partition
from fedplatform.data.splits import Role
from fedplatform.experiments.callbacks import Callback, Mlflow, Recorder, ReportPage, TrainedRun, closing
from fedplatform.experiments.checkpoint import require_storable
from fedplatform.experiments.engine import Engine, local_training, require_same_task
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.run_folder import LOG, RunFolder
from fedplatform.experiments.run_log import RunLog
from fedplatform.experiments.weights import write_start
from fedplatform.experiments.withdrawal import require_enough
from fedplatform.learning.parameters import batch_norm_names
from fedplatform.learning.training import FedBN, FedBNP, SiloBN, Trainer, body_outputs

log = logging.getLogger(__name__)


class NoEffectError(ExperimentError):
    """No round of a run changed the model: its figures would be those of the untrained network."""


def no_op(*_: object) -> None:
    """Do nothing."""


def default_name(experiment: Experiment) -> str:
    """What a run is called where no name is given."""
    return f"{experiment.data_slug}-{experiment.rule_slug}-{experiment.attack_slug}-seed{experiment.seed}"


def rehearse(experiment: Experiment, *, channels: int, num_classes: int) -> Trainer:
    """Build the experiment's network and try it on two empty scans, before any scan is dealt.

    Raises :class:`ExperimentError` in one line where it cannot be built or trained.
    """
    training = experiment.local_training(channels=channels, num_classes=num_classes)
    try:
        trainer = Trainer(training)
        trainer.rehearse()
    except Exception as error:  # whatever a user's network raises while it is built
        said = (str(error).splitlines() or [""])[0]
        what = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ExperimentError(f"model {experiment.settings()['model']}: {what}{said}") from error
    return trainer


def _warn_of_nothing_personal(experiment: Experiment, trainer: Trainer) -> None:
    if isinstance(experiment.algorithm, FedBN | FedBNP | SiloBN) and not batch_norm_names(trainer.model):
        log.warning(
            "algorithm %s keeps batch normalisation in the hospital, and model %s has none: all of it is shared",
            experiment.settings()["algorithm"],
            experiment.settings()["model"],
        )


def partition_data(
    experiment: Experiment, folder: Path, *, data_folder: Path | None = None, progress: Progress = no_op
) -> Manifest:
    """Write the shard of every hospital, and the server's root set, into ``folder``."""
    byzantine = experiment.adversary().hospital_ids
    ids = experiment.inside
    source = experiment.open_data(data_folder)
    trainer = rehearse(experiment, channels=source.channels, num_classes=len(source.classes))
    _warn_of_nothing_personal(experiment, trainer)
    return write_partition(
        source,
        name=experiment.data_slug,
        how=experiment.partition,
        num_hospitals=len(ids),
        graders=[number for number, name in enumerate(ids) if name not in byzantine],
        split=experiment.split,
        root_size=experiment.root_size,
        scans=experiment.scans,
        task=experiment.task,
        seed=experiment.seed,
        size=experiment.size,
        channels=source.channels,
        folder=folder,
        progress=progress,
    )


def train(
    experiment: Experiment,
    *,
    engine: Engine,
    shards: Path,
    state_folder: Path,
    checkpoints: Path | None = None,
    callbacks: Sequence[Callback] = (),
    withdrawn: Sequence[Withdrawal] = (),
) -> TrainedRun:
    """Run all rounds that are still to come, on shards that are written; ``callbacks`` hear of each moment.

    Hospitals keep their personal state in ``state_folder``. With a folder of ``checkpoints`` every round ends in one,
    and training goes on after the newest that is there. Who has ``withdrawn`` is not asked. Raises
    :class:`NoEffectError` where no round changed the model, at once where every hospital's training raises the same.
    """
    manifest = Manifest.load(shards)
    launched = engine.launch(
        experiment, shards, state_folder=state_folder, checkpoints=checkpoints, withdrawn=withdrawn
    )
    with closing(callbacks), launched as federation:
        earlier = federation.earlier()
        for complaint in earlier.refused:
            log.warning("%s", complaint)
        reports: list[RoundReport] = list(earlier.reports)
        for callback in callbacks:
            callback.started(experiment, tuple(reports))
        for report in federation.reports():
            if reports:
                reports[-1] = reports[-1].without_tests()
            reports.append(report)
            for callback in callbacks:
                callback.round_finished(reports)
            asked = [record for record in report.hospitals if record.state is not HospitalState.WITHDRAWN]
            if all(record.reason.startswith(TRAINING_RAISED) for record in asked):
                require_effect([report])
        require_effect(reports)
        outcome = federation.outcome()
        trained = TrainedRun(
            experiment,
            manifest,
            tuple(reports),
            outcome.weights,
            outcome.best,
            Trainer(local_training(experiment, manifest)).layout,
            outcome.sample_images,
            outcome.samples,
        )
        for callback in callbacks:
            callback.finished(trained)
    return trained


def say_device(engine: Engine, experiment: Experiment) -> None:
    """Say in a line which GPU is taken, and whether its bits repeat; nothing on a CPU, where they always do.

    Raises :class:`ComputeError` where there is not the device that the experiment asks for.
    """
    if words := engine.computes_on(experiment):
        log.warning("computing on %s", words)


def require_effect(reports: Sequence[RoundReport]) -> None:
    """Raise :class:`NoEffectError`, with the commonest reason, where no round changed the model."""
    if any(report.had_effect for report in reports):
        return
    reasons = Counter(record.reason for record in reports[-1].hospitals if record.reason)
    why = reasons.most_common(1)[0][0].removeprefix(f"{WITHOUT_EFFECT}: ") if reasons else "no update counted"
    raise NoEffectError(f"nothing was learned, for no round had an effect: {why}")


def run(
    experiment: Experiment,
    *,
    engine: Engine,
    runs: Path = Path("runs"),
    name: str | None = None,
    data_folder: Path | None = None,
    shards: Path | None = None,
    callbacks: Sequence[Callback] = (),
    resumable: bool = True,
    tracked: bool = True,
    options: Sequence[str] = (),
) -> tuple[RunFolder, list[RoundReport]]:
    """Run an experiment and leave ``runs/<name>/`` behind.

    ``shards`` is a folder of shards that are written already; without it they are written first. A run that fails
    before its first round leaves nothing; one that fails later leaves the rounds that it finished, and :func:`resume`
    goes on with it. One in which no round had an effect raises :class:`NoEffectError`. One that is not ``resumable``
    writes no checkpoints; one that is not ``tracked`` neither draws ``report.html`` nor sends its figures to MLflow.
    ``options`` are words of the command line that going on with it takes again, for whoever is told how to.
    """
    if resumable:
        require_storable(experiment.rule, hospitals=experiment.hospitals, has_root=experiment.root_size > 0)
    say_device(engine, experiment)
    folder = RunFolder.create(runs, name) if name else RunFolder.create_numbered(runs, default_name(experiment))
    listeners = [*_listeners(folder, engine, tracked=tracked), *callbacks]
    try:
        folder.write_settings(experiment.settings())
        with folder.alone(), kept_in(folder.path / LOG):
            if shards is None:
                shards = folder.path / "shards"
                _deal(experiment, shards, data_folder, callbacks)
            else:  # so that whoever goes on with this run finds them
                manifest = Manifest.load(shards)
                require_same_task(experiment, manifest)
                rehearse(experiment, channels=manifest.settings.channels, num_classes=len(manifest.classes))
                (folder.path / "shards").symlink_to(os.path.relpath(shards.resolve(), folder.path.resolve()))
            experiment = _with_start(experiment, folder, shards, callbacks)
            trained = train(
                experiment,
                engine=engine,
                shards=shards,
                state_folder=folder.state_folder,
                checkpoints=folder.checkpoints if resumable else None,
                callbacks=listeners,
            )
            folder.forget_rounds()
    except BaseException as error:
        if not folder.has_any_round:
            shutil.rmtree(folder.path, ignore_errors=True)
        elif resumable and not isinstance(error, NoEffectError):
            error.add_note(f"go on with: {folder.how_to_resume(options)}")
        raise
    return folder, list(trained.reports)


def resume(
    folder: RunFolder,
    *,
    engine: Engine,
    data_folder: Path | None = None,
    shards: Path | None = None,
    rounds: int | None = None,
    device: str | None = None,
    patience: int | None = None,
    callbacks: Sequence[Callback] = (),
    options: Sequence[str] = (),
) -> list[RoundReport]:
    """Go on with a run that was stopped, from its newest intact checkpoint; the result is that of an unbroken run.

    Its last unfinished round is done anew. With ``rounds`` it goes on until so many are done, also where it was
    finished; its learning rate then follows the schedule of the new number, so that the result is not that of a run
    which had them from the start. With a ``device`` it goes on there; with another ``patience`` it goes on where that
    ended it. ``options`` are as in :func:`run`. Raises :class:`ExperimentError` where another
    process works on the run, its checkpoints cannot be used, or more rounds would outdate a defence that was trained
    for it.
    """
    with folder.alone(), kept_in(folder.path / LOG):
        if (rounds is not None or patience is not None) and (folder.path / "defence").exists():
            raise ExperimentError(
                f"{folder.path / 'defence'} was trained for this run as it is; remove it to go on for more rounds"
            )
        asked = {"rounds": rounds, "device": device, "patience": patience}
        changes = {name: value for name, value in asked.items() if value is not None}
        experiment = Experiment.from_settings({**folder.read_settings(), **changes})
        require_enough(experiment, folder.withdrawn)
        say_device(engine, experiment)
        if changes:
            folder.write_settings(experiment.settings())
        try:
            shards = shards or folder.path / "shards"
            if not (shards / MANIFEST).exists():  # stopped while scans were dealt
                _deal(experiment, shards, data_folder, callbacks)
                for name in folder.withdrawn:
                    delete_scans(shards, Manifest.load(shards).hospitals[experiment.inside.index(name)].file)
            experiment = _with_start(experiment, folder, shards, callbacks)
            trained = train(
                experiment,
                engine=engine,
                shards=shards,
                state_folder=folder.state_folder,
                checkpoints=folder.checkpoints,
                callbacks=[*_listeners(folder, engine, tracked=True), *callbacks],
                withdrawn=folder.withdrawals,
            )
            folder.forget_rounds()
        except BaseException as error:
            error.add_note(f"go on with: {folder.how_to_resume(options)}")
            raise
    return list(trained.reports)


def _with_start(experiment: Experiment, folder: RunFolder, shards: Path, callbacks: Sequence[Callback]) -> Experiment:
    """The experiment with its first weights kept in the run's folder, so that every launch starts from the same."""
    if experiment.weights is None:
        return experiment
    if not folder.start.exists():
        manifest = Manifest.load(shards)
        fitted, origin = experiment.weights.fitted(
            experiment.model,
            channels=manifest.settings.channels,
            num_classes=body_outputs(experiment.objective, len(manifest.classes)),
            size=experiment.size,
        )
        words = write_start(folder.start, fitted, source=experiment.weights.source, origin=origin)
        for callback in callbacks:
            callback.weights_loaded(words)
    return experiment.from_start(folder.start)


def _listeners(folder: RunFolder, engine: Engine, *, tracked: bool) -> list[Callback]:
    """What every run in a folder has; MLflow comes last, for it copies the page."""
    shown = [*engine.callbacks(folder.path.name), ReportPage(folder), Mlflow(folder)] if tracked else []
    return [RunLog(), Recorder(folder), *shown]


def _deal(experiment: Experiment, shards: Path, data_folder: Path | None, callbacks: Sequence[Callback]) -> None:
    def progress(done: int, total: int) -> None:
        for callback in callbacks:
            callback.dealing(done, total)

    manifest = partition_data(experiment, shards, data_folder=data_folder, progress=progress)
    counts = {role: np.sum([shard.counts[role] for shard in manifest.hospitals], axis=0) for role in Role}
    if np.count_nonzero(counts[Role.TRAIN]) < 2:  # a site may have one, and the federation not
        only = manifest.counted[int(np.argmax(counts[Role.TRAIN]))]
        raise ExperimentError(f"a classifier needs two classes, got training scans of {only!r} only")
    _say_labels(experiment, manifest, counts)


def _say_labels(experiment: Experiment, manifest: Manifest, counts: Mapping[Role, np.ndarray]) -> None:
    """Say what nobody sees in a figure: in which order grades are taken, and which findings no test scan shows."""
    if TASKS[experiment.task].is_ordered:
        log.warning("task ordinal takes the classes in this order, lowest first: %s", ", ".join(manifest.classes))
    absent = [name for name, count in zip(manifest.classes, counts[Role.TEST], strict=False) if not count]
    if manifest.is_multilabel and absent:
        log.warning("no test scan has %s: left out of the mean AUC and of balanced accuracy", ", ".join(absent))
