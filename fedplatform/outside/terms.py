"""What a federation asks of a hospital: shown to its person before anything leaves the house."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from pydantic import Field

from fedplatform.core.compute import Compute
from fedplatform.core.settings import ExperimentError, Settings
from fedplatform.data.shards import Manifest
from fedplatform.experiments.experiment import Experiment
from fedplatform.federated.transport import TransportName
from fedplatform.learning.training import LocalTraining

TRAINING = (
    *(
        "size",
        "split",
        "model",
        "algorithm",
        "objective",
        "augmentation",
        "sampling",
        "optimiser",
        "rounds",
        "local_epochs",
    ),
    *("batch_size", "learning_rate", "momentum", "weight_decay", "deadline_s", "seed"),
)


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
            }
        )
        terms.experiment()
        return terms

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

    def local_training(self, compute: Compute) -> LocalTraining:
        """How a hospital trains, on the device of its own choice."""
        training = self.experiment().local_training(channels=self.channels, num_classes=len(self.classes))
        return replace(training, compute=compute)
