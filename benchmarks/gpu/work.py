"""The work that is done on both devices: networks, scans and hospitals, all made from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from fedplatform.core.compute import Compute
from fedplatform.core.seeding import lent_stream
from fedplatform.data.device_pixels import Pictures, placed
from fedplatform.data.images import to_images
from fedplatform.data.shards import ROOT, Shard
from fedplatform.data.splits import Role
from fedplatform.defence import DefendedClassifier, Detector, DiffusionPurifier, Fusion, KeyedNoise, OneShot
from fedplatform.defence.calibration import DepthMap
from fedplatform.defence.detector import PARTS
from fedplatform.defence.gate import Gate
from fedplatform.defence.sensor import Sensor
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.run import partition_data
from fedplatform.federated.hospital import Hospital
from fedplatform.federated.root_set import RootInRound, RootSet
from fedplatform.learning.models import Classifier, MaskedAutoencoder, NoisePredictor, ResidualSensor, TimmModel
from fedplatform.learning.training import LocalTraining, Trainer


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    side: int  # pixels of the scans of the small networks
    scans: int
    network: str  # timm's name of the large one
    large_side: int
    batch: int
    steps: int  # of training the large network
    repeats: int


FULL = Sizes(side=64, scans=256, network="resnet50", large_side=224, batch=64, steps=40, repeats=5)
DRY = Sizes(side=32, scans=32, network="resnet18", large_side=32, batch=8, steps=4, repeats=1)


class Work:
    """One device's share of the work; ``folder`` holds the shards of a small federation, dealt once for both."""

    def __init__(self, compute: Compute, sizes: Sizes, folder: Path) -> None:
        self.compute = compute.here()
        self.sizes = sizes
        self.folder = folder
        self._shards = folder / "shards"
        if not self._shards.exists():
            partition_data(self._experiment, self._shards)

    @property
    def _experiment(self) -> Experiment:
        settings = {"data": "lesions", "size": self.sizes.side, "scans": 8 * self.sizes.scans, "hospitals": 3}
        return Experiment.from_settings({**settings, "byzantine": 0, "root_size": self.sizes.scans, "rule": "trust"})

    def trainer(self, **changes: object) -> Trainer:
        """A trainer of the small network, or of what ``changes`` say."""
        training = self._experiment.local_training(channels=1, num_classes=2)
        values = {**vars(training), "compute": self.compute, **changes}
        return Trainer(LocalTraining(**values))  # type: ignore[arg-type]

    def large(self, compute: Compute) -> Trainer:
        """A trainer of the large network, all of whose state is shared."""
        sizes = self.sizes
        return self.trainer(
            model=TimmModel(sizes.network),
            algorithm=Experiment.from_settings({"algorithm": "fedavg"}).algorithm,
            channels=3,
            size=sizes.large_side,
            batch_size=sizes.batch,
            compute=compute,
        )

    def pixels(self, count: int, *, channels: int, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Scans (n, c, side, side) uint8 of noise, and labels (n,)."""
        draw = np.random.default_rng(0)
        shape = (count, channels, side, side)
        return draw.integers(0, 256, shape, dtype=np.uint8), draw.integers(0, 2, count)

    @cached_property
    def root(self) -> RootInRound:
        """The server's root set in the first round."""
        trainer = self.trainer()
        hospital = Hospital("root", Shard.open(self._shards / ROOT), trainer=trainer, state_file=None, role=Role.ROOT)
        return RootSet(hospital).at(trainer.initial_weights, 1)

    @cached_property
    def hospital(self) -> Hospital:
        """A hospital with its scans where they fit."""
        shard = Shard.open(next(iter(sorted(self._shards.glob("hospital-00*")))))
        return Hospital("hospital-00", shard, trainer=self.trainer(), state_file=None)

    @cached_property
    def images(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scans and labels on the device, as float32."""
        shard = Shard.open(self._shards / ROOT)
        images, labels = shard.images(Role.ROOT), shard.labels(Role.ROOT)
        place = self.compute.place
        return to_images(images).to(place), torch.tensor(labels).to(place)

    @cached_property
    def defended(self) -> DefendedClassifier:
        """A whole defence of untrained networks, whose gate opens for every scan."""
        with lent_stream(0):
            built = {"channels": 1, "num_classes": 2, "size": self.sizes.side}
            classifier = Classifier(self._experiment.model(**built))
            autoencoder, sensor = MaskedAutoencoder()(**built), Sensor(ResidualSensor())(**built)
            network = NoisePredictor(t_max=260)(**built)
        for each in (classifier, autoencoder, sensor, network):
            each.eval().requires_grad_(False)
        unmeasured = Fusion(dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 1.0))
        return DefendedClassifier(
            classifier,
            DiffusionPurifier(network, OneShot()),  # type: ignore[arg-type]
            Gate(threshold=-1e9, usual_depth=0, flagged_depth=DepthMap(75, 125, 0.0, 4.0)),
            KeyedNoise(b"benchmark"),
            detector=Detector(autoencoder, sensor, unmeasured),
            probe_depth=100,
        ).to(self.compute.place)

    def resident(self, count: int) -> tuple[Pictures, np.ndarray]:
        """Large scans on the device where they fit, and their labels."""
        pixels, labels = self.pixels(count, channels=3, side=self.sizes.large_side)
        return placed(pixels, self.compute), labels
