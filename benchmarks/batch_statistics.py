"""What batch normalisation measured in one hospital costs under label skew, on Br35H dealt by Dirichlet .5.

    python -m benchmarks.batch_statistics

A linear probe on the features of the recipe br35h_pretrained: every hospital's scans pass through the same network,
under statistics measured in four ways. Nothing but the statistics differs between the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from fedplatform.data.images import to_images
from fedplatform.data.shards import Manifest, Shard
from fedplatform.data.splits import Role
from fedplatform.experiments.engine import local_training
from fedplatform.experiments.experiment import Experiment, load_settings
from fedplatform.experiments.run import partition_data
from fedplatform.learning.parameters import BATCH_NORM
from fedplatform.learning.training import Trainer

SCANS, BALANCED = 160, 64  # of a hospital for its statistics; of a class in a balanced draw
PENALTIES = (0.001, 0.01, 0.1)  # C of the logistic regression

Statistics = list[tuple[torch.Tensor, torch.Tensor]]  # mean and variance of each layer


class Features:
    """The network without its head, and the statistics that it runs under."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()
        self._layers = [module for module in network.modules() if isinstance(module, BATCH_NORM)]

    def statistics(self) -> Statistics:
        return [(layer.running_mean.clone(), layer.running_var.clone()) for layer in self._layers]

    def put(self, statistics: Statistics) -> None:
        for layer, (mean, variance) in zip(self._layers, statistics, strict=True):
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)

    def measured(self, scans: torch.Tensor) -> Statistics:
        """The statistics of these scans, as a hospital measures its own after every round."""
        for layer in self._layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        self(scans)
        self.network.eval()
        return self.statistics()

    def __call__(self, scans: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return np.concatenate([self.network(part).numpy() for part in scans.split(64)])


def accuracies(features: Features, hospitals: Sequence[tuple], statistics: Sequence[Statistics]) -> list[float]:
    """Test accuracy of the probe for each penalty, every hospital under its own of the ``statistics``."""
    train, test = [], []
    for own, (scans, _, tests, _) in zip(statistics, hospitals, strict=True):
        features.put(own)
        train.append(features(scans))
        if len(tests):
            test.append(features(tests))
    labels, truths = (np.concatenate([hospital[place] for hospital in hospitals]) for place in (1, 3))
    seen, unseen = np.concatenate(train), np.concatenate(test)
    mean, deviation = seen.mean(0), seen.std(0) + 1e-6
    seen, unseen = (seen - mean) / deviation, (unseen - mean) / deviation
    probes = (LogisticRegression(C=penalty, max_iter=2000).fit(seen, labels) for penalty in PENALTIES)
    return [float((probe.predict(unseen) == truths).mean()) for probe in probes]


def main() -> None:
    torch.set_num_threads(1)
    changes = {"model": "efficientnet_lite0(pool=2)", "partition": "dirichlet(concentration=0.5)"}
    settings = load_settings("br35h_pretrained") | changes
    experiment = Experiment.from_settings(settings | {"rule": "mean", "byzantine": 0})
    draw = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        shards = Path(folder)
        manifest = partition_data(experiment, shards / "dealt")
        hospitals = []
        for entry in manifest.hospitals:
            shard = Shard.open(shards / "dealt" / entry.file)
            few = draw.permutation(len(shard.labels(Role.TRAIN)))[:SCANS]
            scans, labels = to_images(shard.images(Role.TRAIN)[few]), shard.labels(Role.TRAIN)[few]
            hospitals.append((scans, labels, to_images(shard.images(Role.TEST)), shard.labels(Role.TEST)))
        network = Trainer(local_training(experiment, Manifest.load(shards / "dealt"))).model
    network.body.head = network.body.head[:2]
    features = Features(network)
    trained, own, balanced = features.statistics(), [], []
    for scans, labels, _, _ in hospitals:
        own.append(features.measured(scans))
        rows = [np.flatnonzero(labels == label) for label in range(len(manifest.classes))]
        if min(map(len, rows)) > 1:
            drawn = np.concatenate([draw.choice(of_class, BALANCED) for of_class in rows])
            draw.shuffle(drawn)
            balanced.append(features.measured(scans[drawn]))
        else:
            balanced.append(None)
    averaged = [
        tuple(torch.stack(values).mean(0) for values in zip(*layer, strict=True)) for layer in zip(*own, strict=True)
    ]
    rows = {
        "of ImageNet, frozen": [trained] * len(hospitals),
        "averaged over hospitals": [averaged] * len(hospitals),
        "each hospital's own": own,
        "each hospital's own, of class-balanced draws": [averaged if each is None else each for each in balanced],
    }
    print(f"| statistics | {' | '.join(f'C = {penalty}' for penalty in PENALTIES)} |\n|---{'|---:' * len(PENALTIES)}|")
    for name, statistics in rows.items():
        print(
            f"| {name} | {' | '.join(f'{100 * value:.1f}' for value in accuracies(features, hospitals, statistics))} |"
        )


if __name__ == "__main__":
    main()
