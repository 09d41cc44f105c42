"""The data set that every installation carries: simulated lesions in real anatomy, seen by ten different scanners.

The anatomy is a template, the average of 152 brains (:mod:`fedplatform.data.anatomy`). Everything else is drawn from
the seed: how a patient's head differs from the template, the skull and scalp round it, the lesions, the scanners.

A slice is made in the order of nature. The template gives the share of each tissue in each pixel; the patient bends it;
a lesion pushes tissue aside and takes its place; the scanner turns shares into grey levels. So the same lesion is dark
in one hospital and bright in another, and nothing but the lesion depends on the label. The scalp, the ventricles and
the benign spots of every patient are as bright and as dark as a lesion, lest a histogram tell who is ill.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from fedplatform.core.seeding import numpy_generator
from fedplatform.data.anatomy import Anatomy
from fedplatform.data.lesion import Lesion
from fedplatform.data.scanner import WEIGHTINGS, Scanner
from fedplatform.data.tissue import sprinkle

BATCH_PATIENTS = 50
FOLDS = 10


@dataclass(frozen=True)
class Lesions:
    """Axial brain MR slices with and without a simulated lesion, a :class:`fedplatform.data.source.Source`.

    Every second patient of a hospital has a lesion, and all slices of such a patient show it. Scans come by hospital,
    patient and level, and a patient looks the same however many others there are and whatever size is asked for. Each
    hospital has its own scanner - contrast, brightness, coil, resolution, noise, pixel size - and the same mix of
    patients as any other. Raises ValueError where a count is less than 1.
    """

    hospitals: int = 10
    patients_per_hospital: int = 80
    slices_per_patient: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hospitals", "patients_per_hospital", "slices_per_patient"):
            if getattr(self, name) < 1:
                raise ValueError(f"Lesions needs {name} >= 1, got {getattr(self, name)}")

    @property
    def classes(self) -> tuple[str, ...]:
        """Their position is the label."""
        return ("healthy", "lesion")

    @property
    def channels(self) -> int:
        """MR pictures are grey."""
        return 1

    def index(self) -> pa.Table:
        """One row a slice: label, group (the patient), fold 0-9 and site; see the protocol."""
        patient = np.repeat(np.arange(self.hospitals * self.patients_per_hospital), self.slices_per_patient)
        labels = self._labels()
        # Deal the patients of each class out in turn, which balances the folds within a hospital and over all.
        turn = np.where(labels == 1, np.cumsum(labels), np.cumsum(1 - labels)) - 1
        return pa.table(
            {
                "label": labels[patient],
                "group": patient,
                "fold": (turn % FOLDS)[patient],
                "site": [f"hospital-{number}" for number in patient // self.patients_per_hospital],
            }
        )

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        """The scans as uint8 batches (b, channels, size, size); three channels repeat the grey one."""
        return self._batches(self._labels(), size=size, channels=channels)

    def images_at(self, rows: np.ndarray, *, size: int, channels: int) -> Iterator[np.ndarray]:
        """The scans of these rows alone; patients of whom none is asked for are not made."""
        return self._batches(self._labels(), size=size, channels=channels, rows=rows)

    def healthy_twins(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        """The same scans, down to the noise, had nobody a lesion: what differs from ``images`` is the lesion."""
        return self._batches(np.zeros_like(self._labels()), size=size, channels=channels)

    def _labels(self) -> np.ndarray:
        """Label of each patient."""
        return np.tile(np.arange(self.patients_per_hospital, dtype=np.int64) % 2, self.hospitals)

    def _batches(
        self, labels: np.ndarray, *, size: int, channels: int, rows: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        if channels not in (1, 3):
            raise ValueError(f"grey scans can be had with 1 or 3 channels, got channels={channels}")
        if size < 1:
            raise ValueError(f"images need size >= 1, got size={size}")
        several = self.slices_per_patient
        kept = range(several * len(labels)) if rows is None else set(rows.tolist())
        patients = sorted({row // several for row in kept})
        for start in range(0, len(patients), BATCH_PATIENTS):
            slices = [
                _resample(scan, size)
                for patient in patients[start : start + BATCH_PATIENTS]
                for row, scan in enumerate(self._scan(patient, labels[patient]), start=several * patient)
                if row in kept
            ]
            yield np.repeat(np.stack(slices)[:, None], channels, axis=1)

    def _scan(self, patient: int, label: int) -> Iterator[np.ndarray]:
        """One patient's slices as scanned, (MATRIX, MATRIX) in [0, 1], from the lowest level up."""
        hospital, number = divmod(patient, self.patients_per_hospital)
        path = ("lesions", f"hospital-{hospital}", number)
        scanner = Scanner.draw(numpy_generator(self.seed, *path[:2]), WEIGHTINGS[hospital % len(WEIGHTINGS)])
        anatomy = Anatomy.draw(numpy_generator(self.seed, *path, "anatomy"), scanner.pixel_mm)
        lesion = Lesion.draw(numpy_generator(self.seed, *path, "lesion"), anatomy) if label else None
        exposure = numpy_generator(self.seed, *path, "exposure")
        for part in range(self.slices_per_patient):
            level = anatomy.level + round(anatomy.reach * ((2 * part + 1) / self.slices_per_patient - 1))
            if lesion is None:
                tissues = anatomy.tissues(level, anatomy.places)
            else:
                tissues = anatomy.tissues(level, lesion.push(anatomy.places))
                lesion.grow(tissues, anatomy.places, level)
            sprinkle(tissues, exposure)
            yield scanner(tissues, exposure)


def _resample(picture: np.ndarray, size: int) -> np.ndarray:
    """A picture (h, w) in [0, 1] as uint8 (size, size), filtered as it shrinks so that nothing aliases."""
    small = Image.fromarray(picture.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
    grey_levels: np.ndarray = np.rint(255 * np.asarray(small)).astype(np.uint8)
    return grey_levels
