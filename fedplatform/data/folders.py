"""Scans in a folder for every class: pictures, DICOM files or NIfTI volumes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from fedplatform.data.brightness import Pixels
from fedplatform.data.dicom import read_dicom, read_dicom_header
from fedplatform.data.error import DataError
from fedplatform.data.index import Integers, numbered
from fedplatform.data.nifti import count_slices, read_slices
from fedplatform.data.origin import UNKNOWN, Origin
from fedplatform.data.patients import GIVEN, NOBODY, patient_in, require_pattern
from fedplatform.data.pictures import batches, count_pages, decode_pages, has_colour

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
STACKS = (".tif", ".tiff")  # may hold several pages
DICOM = (".dcm", ".dicom", ".ima", "")
NIFTI = (".nii", ".nii.gz")
SITE = "site="
PARTS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
JUNK = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class _Place:
    """Where a file lies: below the folder of a class, of a site and of a part of the published split, "" where none."""

    path: Path
    folder: Path
    site: str
    part: str


@dataclass(frozen=True)
class _File:
    path: Path
    label: str
    group: str
    site: str
    part: str
    pictures: int
    origin: Origin = UNKNOWN


@dataclass(frozen=True)
class FolderSource:
    """Scans in a folder for every class; the class names are the names of the folders, in alphabetical order.

    A folder below a class is a patient (``tumour/patient-7/3.png``), the same name below two classes the same one. A
    DICOM file's own patient goes before its folder, and a volume or a stack without either is a patient by itself.
    Folders named ``site=NAME`` above the classes give the site, and so do DICOM files. Folders ``train``, ``val`` and
    ``test`` above them all are the published split. Symbolic links are followed. Of a volume, ``slices_per_volume``
    central axial slices are taken, of a TIFF all pages. Files are read by suffix; one without a suffix is taken for
    DICOM. ``patients`` other than ``given`` takes the place of all that: ``none``, or a pattern with one group that is
    searched for in file names; the same patient at two sites is then two.
    """

    path: Path
    slices_per_volume: int = 8
    patients: str = GIVEN

    def __post_init__(self) -> None:
        if self.patients not in (GIVEN, NOBODY):
            require_pattern(self.patients)

    @cached_property
    def _files(self) -> tuple[_File, ...]:
        return tuple(self._file(place) for place in self._places)

    @cached_property
    def _places(self) -> tuple[_Place, ...]:
        if not self.path.is_dir():
            raise DataError(f"{self.path}: no such folder")
        below = _folders(self.path)
        parts = _is_split(below)
        places: list[_Place] = []
        for root in below if parts else [self.path]:
            part = PARTS[root.name.lower()] if parts else ""
            for top, site in _sites(root):
                for folder in _folders(top):
                    inside = _inside(folder)
                    if not inside:
                        raise DataError(f"{folder}: the folder of this class is empty")
                    places += [_Place(path, folder, site, part) for path in inside]
        if not places:
            raise DataError(f"{self.path}: no scans; it needs a folder for every class with pictures in it")
        return tuple(places)

    def _file(self, place: _Place) -> _File:
        path, folder, site = place.path, place.folder, place.site
        kind = _suffix(path)
        patient = "" if path.parent == folder else str(path.parent.relative_to(folder))
        if kind in PICTURES:
            pages = count_pages(_bytes_of(path)) if kind in STACKS else 1
            return _File(path, folder.name, patient or (str(path) if pages > 1 else ""), site, place.part, pages)
        if kind in NIFTI:
            slices = count_slices(path, at_most=self.slices_per_volume)
            return _File(path, folder.name, patient or str(path), site, place.part, slices)
        if kind in DICOM:
            header = read_dicom_header(path)
            group = header.patient or patient or (str(path) if header.frames > 1 else "")
            return _File(path, folder.name, group, site or header.site, place.part, header.frames, header.origin)
        known = ", ".join(suffix for suffix in (*PICTURES, *DICOM, *NIFTI) if suffix)
        raise DataError(f"{path}: not a picture that can be read ({known}); move it out of the folder")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the class folders, in alphabetical order."""
        return tuple(sorted({file.label for file in self._files}))

    @cached_property
    def channels(self) -> int:
        """3 where any picture has colour, as its header says, else 1."""
        return 3 if any(_has_colour(file.path) for file in self._files) else 1

    def index(self) -> pa.Table:
        """One row a picture: ``label``, and ``group``, ``site`` and ``split`` where files and folders tell them."""
        numbers = {name: label for label, name in enumerate(self.classes)}
        rows = [file for file in self._files for _ in range(file.pictures)]
        columns = {"label": pa.array([numbers[file.label] for file in rows], pa.int64())}
        groups = [self._patient(file) for file in rows]
        if self._all_or_none(groups, "patient"):
            columns["group"] = numbered(groups)
        # Some scanners leave their name and others do not, so a gap here is no mistake of the user's: no site at all.
        if all(file.site for file in rows):
            columns["site"] = pa.array([file.site for file in rows], pa.string())
        if any(file.origin != UNKNOWN for file in rows):
            columns["modality"] = pa.array([file.origin.modality for file in rows], pa.string())
            columns["body_part"] = pa.array([file.origin.body_part for file in rows], pa.string())
            columns["burned_in"] = pa.array([file.origin.burned_in for file in rows], pa.bool_())
        if rows[0].part:
            columns["split"] = pa.array([file.part for file in rows], pa.string())
        return pa.table(columns)

    def _patient(self, file: _File) -> str:
        if self.patients == GIVEN:
            return file.group
        if self.patients == NOBODY:
            return ""
        found = patient_in(file.path.name, self.patients)
        if not found:
            raise DataError(f"{file.path}: the pattern {self.patients} finds no patient in the file's name")
        return f"{file.site}/{found}"

    @property
    def file_names(self) -> tuple[tuple[str, str], ...]:
        """Class and name of every file, in the order of reading."""
        return tuple((file.label, file.path.name) for file in self._files)

    def pictures_at(self, rows: Integers) -> Iterator[Pixels]:
        """The pictures in some rows of the index, ascending, at their own size; only their files are opened."""
        ends = np.cumsum([file.pictures for file in self._files])
        files = np.searchsorted(ends, rows, side="right")
        for number in np.unique(files):
            file = self._files[number]
            pages = list(self._pictures_in(file.path))
            yield from (pages[row] for row in rows[files == number] - (ends[number] - file.pictures))

    def faults(self) -> list[str]:
        """What is wrong with each file that cannot be read, in one line each."""
        found = []
        for place in self._places:
            try:
                for _ in self._pictures_in(self._file(place).path):
                    pass
            except DataError as error:
                found.append(str(error))
        return found

    def _all_or_none(self, names: list[str], what: str) -> bool:
        named = sum(bool(name) for name in names)
        if 0 < named < len(names):
            raise DataError(
                f"{self.path}: {named} of {len(names)} scans name a {what}; either all do or none (--patients none: "
                "none does)"
            )
        return named > 0

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        """Read the files class by class in alphabetical order, as uint8 (b, channels, size, size)."""
        return batches(self._pictures(), size=size, channels=channels)

    def _pictures(self) -> Iterator[Pixels]:
        for file in self._files:
            yield from self._pictures_in(file.path)

    def _pictures_in(self, path: Path) -> Iterator[Pixels]:
        kind = _suffix(path)
        if kind in NIFTI:
            yield from read_slices(path, at_most=self.slices_per_volume)
        elif kind in DICOM:
            yield from read_dicom(path)
        else:
            yield from decode_pages(_bytes_of(path), name=str(path))


def _has_colour(path: Path) -> bool:
    kind = _suffix(path)
    if kind in NIFTI:
        return False
    return read_dicom_header(path).has_colour if kind in DICOM else has_colour(_bytes_of(path), name=str(path))


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _folders(path: Path) -> list[Path]:
    return [below for below in sorted(path.iterdir()) if below.is_dir() and not below.name.startswith((".", "__"))]


def _is_split(folders: list[Path]) -> bool:
    """Whether the folders are the parts of a published split, each with folders inside, and not classes."""
    parts = {PARTS.get(folder.name.lower()) for folder in folders}
    return len(parts) > 1 and "train" in parts and None not in parts and all(_folders(folder) for folder in folders)


def _sites(root: Path) -> list[tuple[Path, str]]:
    """The folders above the classes, with the name of the site; the root itself, and no name, where none is named."""
    below = _folders(root)
    sites = [folder for folder in below if folder.name.startswith(SITE)]
    if sites and len(sites) < len(below):
        raise DataError(f"{root}: either every folder is a {SITE}NAME or none, got {len(sites)}/{len(below)}")
    return [(folder, folder.name.removeprefix(SITE)) for folder in sites] or [(root, "")]


def _inside(folder: Path) -> list[Path]:
    """All files below a folder, in order, behind symbolic links too; hidden ones and what systems leave are passed by.

    Raises DataError for a link that leads nowhere or back to a folder above it.
    """
    found: list[Path] = []
    for at, folders, files in os.walk(folder, followlinks=True):
        here = Path(at)
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        for name in folders:
            if (here / name).is_symlink() and here.resolve().is_relative_to((here / name).resolve()):
                raise DataError(f"{here / name}: a link that leads back to a folder above it")
        for name in files:
            if name.startswith((".", "__")) or name.lower() in JUNK:
                continue
            path = here / name
            if path.is_symlink() and not path.exists():
                raise DataError(f"{path}: a link that leads nowhere")
            if path.is_file():
                found.append(path)
    return sorted(found)


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
