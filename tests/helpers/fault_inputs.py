"""Small synthetic scans: a noisy picture with a disc whose brightness tells the class; no two are twins."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

TWO_CLASSES = ("healthy", "tumour")


def picture(label: int, number: int, *, size: int = 16, seed: int = 0) -> np.ndarray:
    """A grey scan (size, size) uint8; a coarse texture of its own keeps every one from being another's near copy."""
    generator = np.random.default_rng([seed, label, number])
    y, x = np.mgrid[:size, :size] / size
    values = 60 + 40 * generator.standard_normal((size // 4, size // 4)).repeat(4, 0).repeat(4, 1)
    row, column = generator.uniform(0.3, 0.7, 2)
    radius = 0.15 + 0.02 * generator.standard_normal()
    values[(y - row) ** 2 + (x - column) ** 2 < radius**2] += 110 if label % 2 else -40
    values += 5 * generator.standard_normal(values.shape)
    return np.clip(values, 0, 255).astype(np.uint8)


def png(label: int, number: int, *, size: int = 16) -> bytes:
    """The same as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(picture(label, number, size=size)).save(file, "PNG")
    return file.getvalue()


def write_folder(
    root: Path, classes: Sequence[str] = TWO_CLASSES, *, per_class: int = 20, size: int = 16, seed: int = 0
) -> Path:
    """A folder for every class, in the order of the labels; returns ``root``."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            Image.fromarray(picture(label, number, size=size, seed=seed)).save(root / name / f"{number:04d}.png")
    return root


def write_parquet(file: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """A Parquet file with one row a scan; returns ``file``."""
    pd.DataFrame([dict(row) for row in rows]).to_parquet(file)
    return file


def write_arrays(file: Path, codes: Sequence[int], *, per_class: int = 12, size: int = 16) -> Path:
    """An npz file in the layout of Keras whose classes are numbered by ``codes``; a third of it is the test set."""
    pixels = np.stack([picture(label, number, size=size) for label in range(len(codes)) for number in range(per_class)])
    labels = np.repeat(np.array(codes), per_class)
    training = np.arange(len(labels)) % 3 > 0
    np.savez(
        file, x_train=pixels[training], y_train=labels[training], x_test=pixels[~training], y_test=labels[~training]
    )
    return file
