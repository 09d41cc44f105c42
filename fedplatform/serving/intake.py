"""An upload: bytes of a stranger to scans of the size and colour that the networks were trained on, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """What one upload may cost: its ``bytes``, the ``pixels`` it decodes to, and how many ``scans`` it holds."""

    bytes: int = 32 * MEBIBYTE
    pixels: int = 64_000_000
    scans: int = 64


class Refused(Exception):
    """An upload that is not taken: an HTTP ``status`` from 400 to 499 and one ``sentence`` for the person who sent it.

    The sentence names neither a path nor anything that the upload holds.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


def read_scans(
    data: bytes, *, size: int, channels: int, limits: Limits, slice_number: int | None = None
) -> np.ndarray:
    """The scans of a PNG, JPEG, DICOM or NIfTI file as uint8 (n, channels, size, size).

    Which of them it is, the bytes say and no file name. Pixels are those that training saw: a DICOM file's window and
    photometric interpretation hold, all of its frames are given; of a NIfTI volume (.nii or .nii.gz) the central axial
    slice, or ``slice_number``, counted from 0 at the feet. Raises :class:`Refused`, and nothing else, whatever the
    bytes are: 400 broken, 413 too large, 415 of no kind that is read here, 422 whole but not a scan.
    """
    raise NotImplementedError
