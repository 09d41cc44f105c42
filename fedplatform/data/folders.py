"""Scans in a folder for every class: pictures, DICOM files or NIfTI volumes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from fedplatform.data.brightness import Pixels
from fedplatform.data.dicom import read_dicom, read_dicom_header
from fedplatform.data.error import DataError
from fedplatform.data.index import numbered
from fedplatform.data.nifti import count_slices, read_slices
from fedplatform.data.origin import UNKNOWN, Origin
from fedplatform.data.pictures import batches, count_pages, decode_pages

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
STACKS = (".tif", ".tiff")  # may hold several pages
DICOM = (".dcm", ".dicom", ".ima", "")
NIFTI = (".nii", ".nii.gz")
SITE = "site="
JUNK = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class _File:
    path: Path
    label: str
    group: str
    site: str
    pictures: int
    origin: Origin = UNKNOWN


@dataclass(frozen=True)
class FolderSource:
    """Scans in a folder for every class; the class names are the names of the folders, in alphabetical order.

    A folder below a class is a patient (``tumour/patient-7/3.png``), the same name below two classes the same one. A
    DICOM file's own patient goes before its folder, and a volume or a stack without either is a patient by itself.
    Folders named ``site=NAME`` above the classes give the site, and so do DICOM files. Of a volume,
    ``slices_per_volume`` central axial slices are taken, of a TIFF all pages. Files are read by suffix; one without a
    suffix is taken for DICOM.
    """

    path: Path
    slices_per_volume: int = 8

    @cached_property
    def _files(self) -> tuple[_File, ...]:
        if not self.path.is_dir():
            raise DataError(f"{self.path}: no such folder")
        below = _folders(self.path)
        sites = [folder for folder in below if folder.name.startswith(SITE)]
        if sites and len(sites) < len(below):
            raise DataError(f"{self.path}: either every folder is a {SITE}NAME or none, got {len(sites)}/{len(below)}")
        files: list[_File] = []
        for top in sites or [self.path]:
            for folder in _folders(top):
                inside = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path, folder)]
                if not inside:
                    raise DataError(f"{folder}: the folder of this class is empty")
                files += [self._file(path, folder, top.name.removeprefix(SITE) if sites else "") for path in inside]
        if not files:
            raise DataError(f"{self.path}: no scans; it needs a folder for every class with pictures in it")
        return tuple(files)

    def _file(self, path: Path, folder: Path, site: str) -> _File:
        kind = _suffix(path)
        patient = "" if path.parent == folder else str(path.parent.relative_to(folder))
        if kind in PICTURES:
            pages = count_pages(_bytes_of(path)) if kind in STACKS else 1
            return _File(path, folder.name, patient or (str(path) if pages > 1 else ""), site, pages)
        if kind in NIFTI:
            slices = count_slices(path, at_most=self.slices_per_volume)
            return _File(path, folder.name, patient or str(path), site, slices)
        if kind in DICOM:
            header = read_dicom_header(path)
            group = header.patient or patient or (str(path) if header.frames > 1 else "")
            return _File(path, folder.name, group, site or header.site, header.frames, header.origin)
        known = ", ".join(suffix for suffix in (*PICTURES, *DICOM, *NIFTI) if suffix)
        raise DataError(f"{path}: not a picture that can be read ({known}); move it out of the folder")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the class folders, in alphabetical order."""
        return tuple(sorted({file.label for file in self._files}))

    @cached_property
    def channels(self) -> int:
        """1 or 3, by the first picture."""
        return 3 if next(self._pictures()).ndim == 3 else 1

    def index(self) -> pa.Table:
        """One row a picture: ``label``, and ``group`` and ``site`` where the files tell them."""
        numbers = {name: label for label, name in enumerate(self.classes)}
        rows = [file for file in self._files for _ in range(file.pictures)]
        columns = {"label": pa.array([numbers[file.label] for file in rows], pa.int64())}
        groups = [file.group for file in rows]
        if self._all_or_none(groups, "patient"):
            columns["group"] = numbered(groups)
        # Some scanners leave their name and others do not, so a gap here is no mistake of the user's: no site at all.
        if all(file.site for file in rows):
            columns["site"] = pa.array([file.site for file in rows], pa.string())
        if any(file.origin != UNKNOWN for file in rows):
            columns["modality"] = pa.array([file.origin.modality for file in rows], pa.string())
            columns["body_part"] = pa.array([file.origin.body_part for file in rows], pa.string())
            columns["burned_in"] = pa.array([file.origin.burned_in for file in rows], pa.bool_())
        return pa.table(columns)

    def _all_or_none(self, names: list[str], what: str) -> bool:
        named = sum(bool(name) for name in names)
        if 0 < named < len(names):
            raise DataError(f"{self.path}: {named} of {len(names)} scans name a {what}; either all do or none")
        return named > 0

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        """Read the files class by class in alphabetical order, as uint8 (b, channels, size, size)."""
        return batches(self._pictures(), size=size, channels=channels)

    def _pictures(self) -> Iterator[Pixels]:
        for file in self._files:
            kind = _suffix(file.path)
            if kind in NIFTI:
                yield from read_slices(file.path, at_most=self.slices_per_volume)
            elif kind in DICOM:
                yield from read_dicom(file.path)
            else:
                yield from decode_pages(_bytes_of(file.path), name=str(file.path))


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _folders(path: Path) -> list[Path]:
    return [below for below in sorted(path.iterdir()) if below.is_dir() and not below.name.startswith((".", "__"))]


def _hidden(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return path.name.lower() in JUNK or any(part.startswith((".", "__")) for part in parts)


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
