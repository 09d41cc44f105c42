"""What a federation asks of a hospital: shown to its person before anything leaves the house."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Self

from pydantic import Field

from fedplatform.core.compute import Compute
from fedplatform.core.settings import ExperimentError, Settings
from fedplatform.core.tasks import TASKS, TaskName
from fedplatform.data.shards import Manifest
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.weights import read_start
from fedplatform.federated.transport import TransportName
from fedplatform.learning.models.started import StartedModel
from fedplatform.learning.training import LocalTraining

TRAINING = (
    *(
        "size",
        "split",
        "model",
        "algorithm",
        "task",
        "objective",
        "augmentation",
        "sampling",
        "optimiser",
        "rounds",
        "local_epochs",
    ),
    *("batch_size", "learning_rate", "schedule", "clip", "momentum", "weight_decay", "deadline_s", "seed"),
)


class Start(Settings):
    """The weights that every hospital starts from, as a file that ``experiments.weights.write_start`` wrote."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the file")
    size: int = Field(ge=1, le=2**40, description="its bytes")
    frozen: tuple[str, ...] = Field((), description="the parts of the network that are not trained")

    @classmethod
    def of(cls, experiment: Experiment) -> Self | None:
        """Of the run's own copy of its first weights; None where it starts from the seed's."""
        if experiment.weights is None:
            return None
        assert experiment.weights.kept is not None, "a run keeps what it starts from"
        body = experiment.weights.kept.read_bytes()
        return cls(sha256=sha256(body).hexdigest(), size=len(body), frozen=experiment.freeze)


class Terms(Settings):
    """How every hospital of a run trains, and for which classes.

    ``training`` holds those settings of the experiment that a hospital needs, as an experiment file has them. They name
    only what comes with the package: a server cannot have a hospital run code of its choice.
    """

    run: str = Field(pattern="^[0-9a-f]{32}$", description="this run and no other, drawn at random")
    data: str = Field(max_length=100, description="what the federation calls its data")
    hospitals: int = Field(ge=1, description="hospitals that take part")
    classes: tuple[str, ...] = Field(min_length=1, description="the classes, by label")
    channels: int = Field(ge=1, le=16, description="channels of a scan")
    transport: TransportName = Field("exact", description="how an update travels")
    training: dict[str, str | int | float] = Field(description="of the experiment")
    start: Start | None = Field(None, description="the weights to start from, where they are not the seed's")

    @classmethod
    def of(cls, experiment: Experiment, manifest: Manifest, *, run: str) -> Self:
        """The terms of a run. Raises :class:`ExperimentError` where it trains what does not come with the package."""
        settings = experiment.settings()
        terms = cls.from_settings(
            {
                "run": run,
                "data": experiment.data_slug,
                "hospitals": experiment.hospitals,
                "classes": manifest.classes,
                "channels": manifest.settings.channels,
                "transport": experiment.transport,
                "training": {name: settings[name] for name in TRAINING},
                "start": Start.of(experiment),
            }
        )
        terms.experiment()
        return terms

    @property
    def task(self) -> TaskName:
        """What a label is; one class where the terms say nothing."""
        named = TASKS.get(str(self.training.get("task")))
        return named.name if named else "multiclass"

    def experiment(self) -> Experiment:
        """The part of the experiment that a hospital sees. Raises :class:`ExperimentError`."""
        if set(self.training) != set(TRAINING):
            raise ExperimentError(f"terms name {', '.join(TRAINING)}; got {', '.join(self.training)}")
        for name, value in self.training.items():
            if isinstance(value, str) and ":" in value:
                raise ExperimentError(
                    f"{name} {value} is code of somebody's own; hospitals outside run what comes with the package"
                )
        return Experiment.from_settings(self.training)

    def local_training(self, compute: Compute, start: Path | None = None) -> LocalTraining:
        """How a hospital trains, on the device of its own choice, beginning with the weights in the file ``start``.

        That file is there where the terms name weights. Raises :class:`ExperimentError` where it is damaged.
        """
        training = self.experiment().local_training(channels=self.channels, num_classes=len(self.classes))
        training = replace(training, compute=compute)
        if self.start is None:
            return training
        assert start is not None
        return replace(training, model=StartedModel(training.model, read_start(start), self.start.frozen))
