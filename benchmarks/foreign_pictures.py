"""Pictures of other kinds, sent to a published run: ``python -m benchmarks.foreign_pictures RUN --own br35h``.

Each picture goes as a PNG file through the endpoint's own reader and one hospital's published defence, the hospitals in
turn. A row a kind: how many were refused, referred as another kind of picture, referred for low confidence, and how
many got a plain answer; and what the same defence would have answered without the gate. The rows "own test scans" say
what the gate costs. ``docs/results/foreign_pictures.csv``
holds a block of rows for each model.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from fedplatform.data.images import to_images
from fedplatform.data.sources import open_source
from fedplatform.defence import KeyedNoise
from fedplatform.defence.diagnosis import DOUBTFUL, FOREIGN
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.serving.intake import Limits, read_scans
from fedplatform.serving.refused import Refused
from fedplatform.serving.versions import RunVersions, bundle_of

PICTURES = 200  # of each kind
SETS = {
    "dermoscopy (HAM10000)": ("ham10000_128.parquet", 3),
    "histology (LC25000)": ("lc25000", 3),
    "natural images (CIFAR-10)": ("cifar10", 3),
    "digits (MNIST)": ("mnist", 1),
    "brain MR, Br35H": ("br35h", 1),
    "brain MR, Alzheimer set": ("alzheimer", 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--own", required=True, choices=[name for name, _ in SETS.values()], help="its data")
    parser.add_argument("--data-folder", type=Path, default=Path("../shared/data"), help="folder of the real data sets")
    parser.add_argument("--grey", action="store_true", help="send all pictures without colour, the harder case")
    parser.add_argument("--out", type=Path, default=Path("docs/results/foreign_pictures.csv"))
    chosen = parser.parse_args()
    run = DefendedRun(chosen.run)
    versions = RunVersions(chosen.run)
    folder = versions.folder(versions.champion())
    bundles = [bundle_of(folder, name) for name in run.tested]
    defences = [bundle.accelerated(KeyedNoise(bytes(32))) for bundle in bundles]
    card = bundles[0].card
    rows = []
    own = [parts.test[0] for parts in map(run.hospital, run.tested)]
    files = [(hospital, png(image.numpy() * 255)) for hospital, images in enumerate(own) for image in images]
    kinds = {"own test scans": files}
    foreign = {
        name: pictures(source, channels, chosen.data_folder)
        for name, (source, channels) in SETS.items()
        if source != chosen.own
    }
    for kind, pixels in {**foreign, "blank, noise, gradients": blanks()}.items():
        made = [png(one.mean(axis=0, keepdims=True) if chosen.grey else one) for one in pixels]
        kinds[kind] = [(number % len(defences), data) for number, data in enumerate(made)]
    for kind, sent in kinds.items():
        ends: Counter[str] = Counter()
        for hospital, data in sent:
            try:
                scans = read_scans(data, size=card.size, channels=card.channels, limits=Limits())
            except Refused:
                ends["refused"] += 1
                continue
            (said,) = defences[hospital].diagnose(to_images(scans))
            ends[said.referral or "plain"] += 1
            ends["plain without the gate"] += said.confidence >= defences[hospital].least_confidence
        share = {name: round(100 * ends[name] / len(sent), 1) for name in ("refused", FOREIGN, DOUBTFUL, "plain")}
        alone = round(100 * ends["plain without the gate"] / len(sent), 1)
        rows.append({"model": chosen.own, "kind": kind, "n": len(sent), **share, "plain without the gate": alone})
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows).assign(colour="grey" if chosen.grey else "as it is")
    if chosen.out.exists():
        before = pd.read_csv(chosen.out)
        same = (before["model"] == chosen.own) & (before["colour"] == table["colour"].iloc[0])
        table = pd.concat([before[~same], table])
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(chosen.out, index=False)


def pictures(source: str, channels: int, folder: Path) -> list[np.ndarray]:
    """Pictures (c, h, w) of a data set, spread over it."""
    opened = open_source(str(folder / source)) if "." in source else open_source(source, folder=folder)
    count = opened.index().num_rows
    wanted = set(np.linspace(0, count - 1, PICTURES).astype(int).tolist())
    found, first = [], 0
    for batch in opened.images(size=128, channels=channels):
        found += [batch[row - first] for row in range(first, first + len(batch)) if row in wanted]
        first += len(batch)
    return found


def blanks() -> list[np.ndarray]:
    """Pictures (1, 128, 128) without content: one grey, noise, gradients, a bright square on black."""
    generator = np.random.default_rng(0)
    made = []
    for number in range(PICTURES):
        level, spread = generator.integers(0, 256), generator.integers(2, 60)
        row, column = generator.integers(0, 112, 2)
        square = np.zeros((128, 128))
        square[row : row + 16, column : column + 16] = 255
        shapes = (
            np.full((128, 128), level),
            generator.integers(0, 256, (128, 128)),
            np.broadcast_to(np.linspace(0, level, 128), (128, 128)),
            generator.normal(level, spread, (128, 128)),
            square,
        )
        made.append(shapes[number % len(shapes)].clip(0, 255).astype(np.uint8)[None])
    return made


def png(pixels: np.ndarray) -> bytes:
    """A picture (c, h, w) as a PNG file."""
    stream = io.BytesIO()
    values = pixels.round().astype(np.uint8)
    Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0)).save(stream, "PNG")
    return stream.getvalue()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
