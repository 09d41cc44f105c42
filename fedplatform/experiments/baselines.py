"""The rows that keep a table honest: what memorising alone is worth, and what the federation gives away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from fedplatform.core.messages import Predictions
from fedplatform.core.tasks import certain, task_of
from fedplatform.data.shards import Manifest, Shard
from fedplatform.data.splits import Role
from fedplatform.learning.metrics import Figures, judge

NEAREST_NEIGHBOUR = "nearest_neighbour"
CENTRAL = "central"


def look_up(shards: Path) -> KNeighborsClassifier:
    """Answers with the label of the nearest training picture of all hospitals, by pixels (n, c * h * w) of [0, 1]."""
    return KNeighborsClassifier(n_neighbors=1, algorithm="brute").fit(*_pooled(shards, Role.TRAIN))


def _pooled(shards: Path, role: Role) -> tuple[np.ndarray, np.ndarray]:
    opened = [Shard.open(shards / shard.file) for shard in Manifest.load(shards).hospitals]
    pictures = np.concatenate([shard.images(role) for shard in opened])
    return (
        pictures.reshape(len(pictures), -1).astype(np.float32) / 255,
        np.concatenate([shard.labels(role) for shard in opened]),
    )


def nearest_neighbour(shards: Path) -> Figures:
    """Judge the :func:`look_up` on the test scans."""
    manifest = Manifest.load(shards)
    pictures, labels = _pooled(shards, Role.TEST)
    count = len(manifest.classes)
    answers = certain(look_up(shards).predict(pictures), count)
    predictions = Predictions("all", Role.TEST, answers, labels, float("nan"))
    return judge([predictions], num_classes=count, task=task_of(labels))
