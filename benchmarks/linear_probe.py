"""What ImageNet's features know of a data set before anything is trained: a logistic regression on frozen ones.

    python -m benchmarks.linear_probe br35h alzheimer lc25000 --scans 6000

EfficientNet-lite0 cut after its fifth stage, with the statistics of ImageNet, all hospitals' scans in one place, in
the split of an experiment. C is chosen on validation scans.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from fedplatform.data.images import to_images
from fedplatform.data.shards import Manifest, Shard
from fedplatform.data.splits import Role
from fedplatform.experiments.baselines import nearest_neighbour
from fedplatform.experiments.engine import local_training
from fedplatform.experiments.experiment import Experiment, load_settings
from fedplatform.experiments.run import partition_data
from fedplatform.learning.training import Trainer

INVERSE_PENALTIES = (0.0001, 0.001, 0.01, 0.1)


def probe(data: str, *, seed: int, scans: int) -> tuple[int, float, float, float]:
    """Test scans, and on them: the share of the largest class, nearest neighbour and linear probe."""
    changes = {"data": data, "partition": "iid", "byzantine": 0, "rule": "mean", "seed": seed, "scans": scans}
    experiment = Experiment.from_settings(load_settings("br35h_pretrained") | changes)
    with TemporaryDirectory() as folder:
        shards = Path(folder) / "dealt"
        manifest = partition_data(experiment, shards)
        network: Any = Trainer(local_training(experiment, manifest)).model.eval()
        network.body.head = network.body.head[:2]
        train, validation, test = (_features(network, shards, manifest, role) for role in _ROLES)
        mean, deviation = train[0].mean(0), train[0].std(0) + 1e-6
        seen, judged, unseen = ((features - mean) / deviation for features, _ in (train, validation, test))
        fitted = [LogisticRegression(C=each, max_iter=3000).fit(seen, train[1]) for each in INVERSE_PENALTIES]
        best = max(fitted, key=lambda each: each.score(judged, validation[1]))
        look_up = nearest_neighbour(shards).accuracy
    return len(unseen), float(np.bincount(test[1]).max() / len(unseen)), look_up, best.score(unseen, test[1])


_ROLES = (Role.TRAIN, Role.VALIDATION, Role.TEST)


def _features(network: nn.Module, shards: Path, manifest: Manifest, role: Role) -> tuple[np.ndarray, np.ndarray]:
    opened = [Shard.open(shards / entry.file) for entry in manifest.hospitals]
    labels = np.concatenate([shard.labels(role) for shard in opened])
    with torch.inference_mode():
        rows = [network(part).numpy() for shard in opened for part in to_images(shard.images(role)).split(64)]
    return np.concatenate(rows), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="data sets, by name or path")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scans", type=int, default=0, help="of a larger set so many (0: all)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| data | test scans | largest class | nearest neighbour | linear probe |\n|---|---:|---:|---:|---:|")
    for data in arguments.data:
        count, *shares = probe(data, seed=arguments.seed, scans=arguments.scans)
        print(f"| {data} | {count:,} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
