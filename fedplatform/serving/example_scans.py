"""Makes the scans to try a server with: some of the federation's own, and their attacked twins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from fedplatform.core.seeding import torch_generator
from fedplatform.data.images import to_images
from fedplatform.defence.threats import Victim, attack_hospital
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.serving.answer import picture
from fedplatform.serving.examples import INDEX, Example

OF_EACH_CLASS = 2
EPSILON = 8 / 255


def write_examples(run: DefendedRun, folder: Path) -> None:
    """A few of the server's own scans for every hospital, each with a twin that is attacked through its classifier.

    The attack is tier T2 (it knows the classifier and nothing of the defence) at 8/255. Without own scans of the
    server nothing is written. They are taken in the order of the file: none is chosen for how it is answered.
    """
    samples = run.path / "samples.npz"
    if not samples.is_file():
        return
    with np.load(samples) as found:
        scans, labels = found["images"], found["labels"]
    rows = np.concatenate([np.flatnonzero(labels == label)[:OF_EACH_CLASS] for label in np.unique(labels)])
    images, truths = to_images(scans[rows]), torch.from_numpy(labels[rows])
    for hospital_id in run.tested:
        parts = run.hospital(hospital_id)
        attacked = attack_hospital(
            "T2",
            Victim.of(parts, parts, parts.defended("full")),
            images,
            truths,
            epsilon=EPSILON,
            generator=torch_generator(run.experiment.seed, "examples", hospital_id),
        )
        _write(folder / hospital_id, (images, attacked), [run.manifest.classes[truth] for truth in truths.tolist()])


def _write(folder: Path, both: tuple[torch.Tensor, torch.Tensor], truths: Sequence[str]) -> None:
    folder.mkdir(parents=True)
    examples = []
    for number, truth in enumerate(truths, start=1):
        for images, attacked in zip(both, (False, True), strict=True):
            name = f"scan-{number}{'-attacked' if attacked else ''}.png"
            (folder / name).write_bytes(picture(images[number - 1].numpy()))
            examples.append(Example(name, truth, attacked))
    (folder / INDEX).write_text(json.dumps([asdict(example) for example in examples], indent=1) + "\n")
