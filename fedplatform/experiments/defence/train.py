"""Training the defence of a finished run, in its own federation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import yaml
from safetensors.torch import save_file
from torch import nn

from fedplatform.core.compute import one_thread
from fedplatform.core.files import write_whole
from fedplatform.core.messages import RoundReport
from fedplatform.data.shards import ROOT, Manifest, Shard
from fedplatform.data.splits import Role
from fedplatform.defence import DiffusionPurifier
from fedplatform.defence.purified_objective import Purified
from fedplatform.defence.sensor import Sensor
from fedplatform.defence.settings import DefenceSettings
from fedplatform.defence.tampering_objective import Tampering
from fedplatform.experiments.defence.load import (
    DEFENCE,
    SETTINGS,
    STAGES,
    TUNED,
    DefendedRun,
    read_experiment,
    read_weights,
    require_defensible,
)
from fedplatform.experiments.engine import Engine, local_training
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.run import no_op, say_device
from fedplatform.experiments.run_folder import RunFolder
from fedplatform.experiments.withdrawal import require_enough
from fedplatform.federated.hospital import Hospital
from fedplatform.learning.training import Generative, Orientation, Trainer

GENERATIVE_RATE = 1e-3  # first step size of AdamW
PURIFIER_RATE = 2e-3  # a small UNet takes twice of it: 27.8 against 27.2 dB at depth 50 after 100 CPU seconds on Br35H
SENSOR_RATE = 2e-3  # likewise: so it learned in six epochs of central training
EPOCHS = 2  # local epochs of a round, in every stage
TUNING_STRENGTH = 1.5  # times the run's own epsilon: purification drowns some of an attack, so more is withstood
TUNING_SHARE = 0.2  # of the run's first step size, with which the tuning starts

AS_THE_RUN: Mapping[str, object] = MappingProxyType({})

Observer = Callable[[str, int, RoundReport], None]
"""What is told of every round: the stage, its number of rounds, the report."""


def defend(
    path: Path,
    settings: DefenceSettings,
    *,
    engine: Engine,
    shards: Path | None = None,
    observer: Observer = no_op,
    computing: Mapping[str, object] = AS_THE_RUN,
) -> DefendedRun:
    """Train the defence of the run in ``path`` by the hospitals that trained its classifier, Byzantine ones included.

    In order: the masked autoencoder and the purifier on clean scans; the classifier, tuned on what the purifier makes
    of them; the sensor, on scans attacked through the tuned classifier. A stage that is done is not done again, so a
    call that was stopped goes on with the stage it was in. ``computing`` are the experiment's settings ``device``,
    ``precision`` and ``kernels`` where they are to differ from the run's. Raises :class:`ExperimentError` where there
    is no finished run, a defence that was begun with other settings, or settings that some stage could not work with.
    """
    experiment = read_experiment(path)
    training = _Stages(
        path,
        settings,
        experiment=experiment.replace(**computing) if computing else experiment,
        engine=engine,
        shards=shards or path / "shards",
        observer=observer,
    )
    training.check()
    say_device(engine, training.experiment)
    training.claim()
    with one_thread():  # the server trains a reference here, whatever runs the hospitals
        for stage, file in STAGES.items():
            if not (training.folder / file).is_file():
                getattr(training, stage)()
    return DefendedRun(path, shards=training.shards)


class _Stages:
    """The stages of training one after another, each leaving its file."""

    def __init__(
        self,
        path: Path,
        settings: DefenceSettings,
        *,
        experiment: Experiment,
        engine: Engine,
        shards: Path,
        observer: Observer,
    ) -> None:
        self.path, self.folder, self.shards = path, path / DEFENCE, shards
        self._settings, self._engine, self._observer = settings, engine, observer
        self.experiment = experiment
        self._manifest = Manifest.load(shards)

    def check(self) -> None:
        """Refuse now what would fail after hours."""
        require_enough(self.experiment, RunFolder(self.path).withdrawn)
        require_defensible(self.experiment)
        if not self.experiment.root_size:
            raise ExperimentError("a sensor needs the server's root scans to attack a classifier; set root_size")
        setting, source = self._settings, self._manifest.settings
        shape = {"channels": source.channels, "num_classes": len(self._manifest.classes), "size": source.size}
        try:
            autoencoder, purifier = setting.autoencoder(**shape), setting.purifier(**shape)
            Sensor(setting.sensor)(**shape)
        except ValueError as error:
            raise ExperimentError(str(error)) from error
        for name, network, part in (("autoencoder", autoencoder, "patch_errors"), ("purifier", purifier, "denoise")):
            if not hasattr(network, part):
                raise ExperimentError(f"a {type(network).__name__} cannot be the {name}: it has no {part}")
        deepest = max(setting.probe_depth, setting.usual_depth, setting.least_depth, setting.most_depth)
        if deepest > (greatest := int(purifier.t_max)):  # type: ignore[arg-type]
            raise ExperimentError(f"a purifier with t_max={greatest} learns no depth of {deepest}")

    def claim(self) -> None:
        """Make the folder, or find it begun with the same settings."""
        file = self.folder / SETTINGS
        wanted = self._settings.settings()
        # Read and not compared as text: a setting that did not exist when this was begun had its default.
        if file.is_file() and DefenceSettings.from_settings(yaml.safe_load(file.read_text())).settings() != wanted:
            raise ExperimentError(f"{self.folder} was begun with other settings; remove it to train anew")
        self.folder.mkdir(exist_ok=True)
        text = yaml.safe_dump(wanted, sort_keys=False)
        write_whole(file, lambda path: path.write_text(text))

    def autoencoder(self) -> None:
        """The masked autoencoder of the detector."""
        self._keep(
            "autoencoder", self._generator(self._settings.autoencoder, self._settings.autoencoder_rounds, Generative())
        )

    def purifier(self) -> None:
        """The noise predictor of the purifier."""
        setting = self._settings
        experiment = self._generator(
            setting.purifier, setting.purifier_rounds, Generative(), learning_rate=PURIFIER_RATE
        )
        self._keep("purifier", experiment)

    def tuned(self) -> None:
        """The classifier, from where the run left it, on purified scans."""
        setting = self._settings
        network = DefendedRun.network(self.path, self._manifest, setting.purifier, "purifier")
        objective = Purified(
            DiffusionPurifier(network, setting.sampler),  # type: ignore[arg-type]
            least_depth=min(setting.probe_depth, setting.least_depth),
            most_depth=setting.most_depth,
            epsilon=self._tuning_epsilon(),
        )
        experiment = self.experiment.replace(
            objective=objective,
            rounds=setting.tuning_rounds,
            local_epochs=EPOCHS,
            learning_rate=self.experiment.learning_rate * TUNING_SHARE,
        )
        trainer = Trainer(local_training(self.experiment, self._manifest))
        folder = RunFolder(self.folder / TUNED)
        shutil.rmtree(folder.path, ignore_errors=True)
        folder.path.mkdir()
        if (self.path / "hospitals").is_dir():
            shutil.copytree(self.path / "hospitals", folder.state_folder)
        weights = self._train(
            "tuned", experiment, state_folder=folder.state_folder, start=read_weights(trainer, self.path)
        )
        folder.write_model(weights, trainer.layout)

    def _tuning_epsilon(self) -> float:
        given = self._settings.tuning_epsilon
        return TUNING_STRENGTH * getattr(self.experiment.objective, "epsilon", 0.0) if given is None else given

    def sensor(self) -> None:
        """The sensor of the detector, on scans attacked through the tuned classifier."""
        setting = self._settings
        experiment = self._generator(
            setting.sensor, setting.sensor_rounds, Tampering(self._reference()), learning_rate=SENSOR_RATE
        )
        # To move a scan between pixels would smooth the very noise that the sensor is to know.
        self._keep("sensor", experiment.model_copy(update={"augmentation": Orientation()}))

    def _generator(
        self, model: object, rounds: int, objective: object, *, learning_rate: float = GENERATIVE_RATE
    ) -> Experiment:
        return self.experiment.replace(
            model=model,
            weights="none",
            freeze="none",
            algorithm="fedavg",
            objective=objective,
            optimiser="adamw",
            learning_rate=learning_rate,
            rounds=rounds,
            local_epochs=EPOCHS,
        )

    def _keep(self, stage: str, experiment: Experiment) -> None:
        """Train a network that has no personal part, and keep its whole state."""
        weights = self._train(stage, experiment, state_folder=self.folder / f".{stage}", start=None)
        network = Trainer(local_training(experiment, self._manifest)).model_of(weights, {})
        state = {name: value.contiguous() for name, value in network.state_dict().items()}
        file = self.folder / STAGES[stage]
        write_whole(file, lambda path: save_file(state, path))
        shutil.rmtree(self.folder / f".{stage}", ignore_errors=True)

    def _train(self, stage: str, experiment: Experiment, *, state_folder: Path, start: np.ndarray | None) -> np.ndarray:
        gone = RunFolder(self.path).withdrawals
        launched = self._engine.launch(experiment, self.shards, state_folder=state_folder, start=start, withdrawn=gone)
        with launched as federation:
            for report in federation.reports():
                self._observer(stage, experiment.rounds, report)
            return federation.outcome().weights

    def _reference(self) -> nn.Module:
        """The tuned classifier as the server can put it together: with a personal part from its own root scans."""
        trainer = Trainer(local_training(self.experiment, self._manifest))
        weights = read_weights(trainer, self.folder / TUNED)
        root = Hospital("root", Shard.open(self.shards / ROOT), trainer=trainer, state_file=None, role=Role.ROOT)
        root.train(weights, self.experiment.rounds)
        root.evaluate(weights, [Role.ROOT])
        return trainer.model_of(weights, root.personal)
