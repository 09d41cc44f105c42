"""Scans with known findings: each is a shape that is drawn or not, and a grade is how many discs there are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

FINDINGS = ("disc", "bar", "hole")
SHARES = (0.5, 0.3, 0.15)  # of the scans that have each
SIZE = 32


def findings(n: int, *, seed: int = 0) -> np.ndarray:
    """Which findings each of ``n`` scans has, (n, 3), each drawn by itself."""
    return (np.random.default_rng([seed, 1]).random((n, len(FINDINGS))) < SHARES).astype(np.int64)


def scan(found: np.ndarray, number: int, *, seed: int = 0) -> np.ndarray:
    """A grey scan (32, 32) uint8: noise, a bright disc, a bright bar and a dark hole where there are such."""
    random = np.random.default_rng([seed, 2, number])
    y, x = np.mgrid[:SIZE, :SIZE]
    values = 110 + 12 * random.standard_normal((SIZE, SIZE))
    disc, hole = random.integers(6, SIZE - 6, (2, 2))
    row, column = random.integers(2, SIZE - 4), random.integers(0, SIZE - 16)
    if found[0]:
        values[(y - disc[0]) ** 2 + (x - disc[1]) ** 2 <= 16] += 90
    if found[1]:
        values[row : row + 2, column : column + 16] += 90
    if found[2]:
        values[(y - hole[0]) ** 2 + (x - hole[1]) ** 2 <= 16] -= 90
    return np.clip(values, 0, 255).astype(np.uint8)


def scans(labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """The scans of these findings, (n, 32, 32) uint8."""
    return np.stack([scan(found, number, seed=seed) for number, found in enumerate(labels)])


def graded(n: int, *, grades: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scans (n, 32, 32) of so many grades in turn, and these: a grade is how bright the one disc is."""
    random = np.random.default_rng([seed, 3])
    labels = np.arange(n) % grades
    y, x = np.mgrid[:SIZE, :SIZE]
    pictures = 60 + 12 * random.standard_normal((n, SIZE, SIZE))
    for picture, label in zip(pictures, labels, strict=True):
        row, column = random.integers(6, SIZE - 6, 2)
        picture[(y - row) ** 2 + (x - column) ** 2 <= 25] += 40 * label
    return np.clip(pictures, 0, 255).astype(np.uint8), labels


def write_chest(file: Path, labels: np.ndarray, *, names: bool = True) -> Path:
    """An npz file as MedMNIST publishes ChestMNIST: 70 % for training, 10 % for validation, the rest the test set."""
    pixels, n = scans(labels), len(labels)
    parts = {"train": slice(0, 7 * n // 10), "val": slice(7 * n // 10, 8 * n // 10), "test": slice(8 * n // 10, n)}
    arrays = {f"{part}_images": pixels[rows] for part, rows in parts.items()}
    arrays |= {f"{part}_labels": labels[rows] for part, rows in parts.items()}
    np.savez(file, **arrays, **({"label_names": np.array(FINDINGS)} if names else {}))
    return file


def png(picture: np.ndarray) -> bytes:
    """A picture as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
