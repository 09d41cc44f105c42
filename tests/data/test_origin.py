"""What a header says of a file decides whether it is of the kind that a model was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from hostile_uploads import dicom_bytes, picture_bytes, scan_pixels

from fedplatform.data.folders import FolderSource
from fedplatform.data.index import Index
from fedplatform.data.origin import UNKNOWN, Origin, is_foreign
from fedplatform.serving.intake import Limits, read_study

BRAIN = [Origin("MR", "BRAIN"), Origin("MR", "")]


@pytest.mark.parametrize(
    ("origin", "foreign"),
    [
        (Origin("MR", "BRAIN"), False),
        (Origin("MR", "HEAD"), False),
        (Origin("MR", "SKULL"), False),
        (Origin("MR", ""), False),
        (UNKNOWN, False),
        (Origin("CT", "BRAIN"), True),
        (Origin("CT", ""), True),
        (Origin("MR", "KNEE"), True),
        (Origin("", "KNEE"), True),
        (Origin("MR", "BRAIN", burned_in=True), True),
    ],
)
def test_a_header_that_names_another_modality_or_region_is_foreign_and_one_that_says_nothing_is_not(
    origin: Origin, foreign: bool
) -> None:
    assert is_foreign(origin, BRAIN) is foreign
    assert not is_foreign(origin, []), "where no header told what the model was trained on, pixels alone decide"


def test_writing_in_the_pixels_is_usual_where_training_had_it() -> None:
    assert not is_foreign(Origin("US", "", burned_in=True), [Origin("US", "", burned_in=True)])


def written(path: Path, **elements: str) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom_bytes(scan_pixels()))
    data = pydicom.dcmread(path)
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path)
    return path.read_bytes()


def test_a_folder_of_dicom_files_tells_what_it_is_of_and_so_does_an_upload(tmp_path: Path) -> None:
    for label in ("healthy", "lesion"):
        for number in range(2):
            kind = {"Modality": "MR", "BodyPartExamined": "BRAIN"} if number else {"Modality": "OT"}
            written(tmp_path / label / f"{number}.dcm", PatientID=f"{label}{number}", **kind)
    assert Index.of(FolderSource(tmp_path)).origins == (UNKNOWN, Origin("MR", "BRAIN"))
    data = written(tmp_path / "other.dcm", Modality="CT", BodyPartExamined="CHEST", BurnedInAnnotation="YES")
    study = read_study(data, size=16, channels=1, limits=Limits())
    assert study.origin == Origin("CT", "CHEST", burned_in=True)
    assert study.scans.dtype == np.uint8


def test_pictures_without_a_header_say_nothing(tmp_path: Path) -> None:
    for label in ("healthy", "lesion"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "0.png").write_bytes(picture_bytes(scan_pixels(), "PNG"))
    assert Index.of(FolderSource(tmp_path)).origins == ()
