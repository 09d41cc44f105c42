"""The smallest run with a defence: two hospitals, spots on 16 x 16 pixels, networks of a few thousand weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from fedplatform.defence.settings import DefenceSettings
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.run import run

SIZE = 16
RUN = {
    "size": SIZE,
    "split": "random",
    "hospitals": 2,
    "byzantine": 0,
    "rule": "mean",
    "model": "experts(k=2, width=4, hidden=8)",
    "rounds": 3,
    "local_epochs": 10,
    "batch_size": 16,
    "root_size": 20,
}
DEFENCE = {
    "autoencoder": "masked_autoencoder(width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1, patch=4)",
    "autoencoder_rounds": 3,
    "sensor": "small_cnn(width=4)",
    "sensor_rounds": 3,
    "purifier": "noise_predictor(width=8, halvings=1, t_max=260)",
    "purifier_rounds": 3,
    "tuning_rounds": 2,
    "probe_depth": 25,
    "least_depth": 25,
    "most_depth": 75,
    "copies": 2,
}


def write_spots(file: Path, *, count: int = 500) -> None:
    """A data set in which every second scan has a bright square on an uneven background."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 2
    coarse = torch.tensor(generator.uniform(60, 150, (count, 1, 4, 4)), dtype=torch.float32)
    scans = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")[:, 0].numpy()
    for number in labels.nonzero()[0]:
        row, column = generator.integers(1, 10, 2)
        scans[number, row : row + 5, column : column + 5] += 60
    scans = (scans + generator.normal(0, 2, scans.shape)).clip(0, 255).round().astype(np.uint8)
    first, second = int(0.7 * count), int(0.8 * count)
    parts = {"train": slice(first), "val": slice(first, second), "test": slice(second, None)}
    pictures = {f"{name}_images": scans[part] for name, part in parts.items()}
    np.savez(file, **pictures, **{f"{name}_labels": labels[part] for name, part in parts.items()})


def make(folder: Path) -> None:
    """Train the run and its defence, publish it, and leave all that ``trained`` in tests/conftest.py speaks of."""
    from fedplatform.experiments.defence.load import DefendedRun
    from fedplatform.experiments.defence.train import defend
    from fedplatform.serving.publishing import publish_run, write_bundles
    from fedplatform.serving.versions import RunVersions

    data = folder / "spots.npz"
    write_spots(data)
    experiment = Experiment.from_settings({**RUN, "data": str(data)})
    run(experiment, engine=InProcessEngine(), runs=folder / "undefended", name="spots")
    shutil.copytree(folder / "undefended", folder / "defended")
    stages: list[str] = []
    settings = DefenceSettings.from_settings(DEFENCE)
    defended = folder / "defended" / "spots"
    defend(defended, settings, engine=InProcessEngine(), observer=lambda stage, *_: stages.append(stage))
    (folder / "stages.json").write_text(json.dumps(stages))
    shutil.copytree(folder / "defended", folder / "published")
    published = folder / "published" / "spots"
    publish_run(DefendedRun(published), defence="full")
    versions = RunVersions(published)
    first = versions.folder("1")
    versions.add(lambda place: shutil.copytree(first, place, dirs_exist_ok=True))
    write_bundles(DefendedRun(defended), folder / "bare", defence="no_defence")
