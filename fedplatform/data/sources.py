"""The data sets that have a name, and the way from a name or a path to a source."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedplatform.data.arrays import ArraySource
from fedplatform.data.error import DataError
from fedplatform.data.folders import FolderSource
from fedplatform.data.index import Index
from fedplatform.data.joined_groups import JoinedGroups
from fedplatform.data.merged import MergedClasses
from fedplatform.data.parquet import ParquetSource
from fedplatform.data.patients import GIVEN, NOBODY, FoundPattern, find_pattern
from fedplatform.data.source import Source

ENVIRONMENT = "FEDPLATFORM_DATA"


@dataclass(frozen=True)
class DataSet:
    """A data set with a name: what it shows, who published it, what its groups are, and the file it is read from.

    ``file`` is None for a set that is made and not read.
    """

    description: str
    published: str
    group_means: str
    file: str | None
    open: Callable[[Path], Source]


def _lesions(_: Path) -> Source:
    from fedplatform.data.lesions import Lesions

    return Lesions()


def _br35h(path: Path) -> Source:
    # Of its own 438 groups many hold the same scan, flipped or in another brightness. No two pictures of different
    # classes come nearer than .947.
    return JoinedGroups(ParquetSource(path), at_least=0.95)


def _alzheimer(path: Path) -> Source:
    return MergedClasses(ParquetSource(path), {"Moderate_Demented": "Mild_Demented"})


def _ham10000(path: Path) -> Source:
    benign, malignant = ("bkl", "df", "nv", "vasc"), ("akiec", "bcc", "mel")
    return MergedClasses(
        ParquetSource(path), {**dict.fromkeys(benign, "benign"), **dict.fromkeys(malignant, "malignant")}
    )


DATA_SETS = {
    "lesions": DataSet(
        "simulated brain lesions in real MR anatomy, every hospital its own scanner; needs no file",
        "embedded; anatomy: MNI152 (Fonov et al., 2011)",
        "patient",
        None,
        _lesions,
    ),
    "br35h": DataSet(
        "brain MRI slices, tumour or none",
        "Br35H :: Brain Tumor Detection 2020 (Hamada)",
        "near-identical pictures: flips, rotations, brightness",
        "br35h_128.parquet",
        _br35h,
    ),
    "alzheimer": DataSet(
        "brain MRI slices by stage of dementia; Moderate (two people) counts as Mild",
        "Alzheimer MRI 4-class set (Kaggle), from OASIS-1",
        "subject",
        "alzheimer_128.parquet",
        _alzheimer,
    ),
    "lc25000": DataSet(
        "lung histopathology tiles: normal, adenocarcinoma, squamous cell carcinoma",
        "LC25000 (Borkowski et al., 2019)",
        "source tile",
        "lc25000_lung_64.parquet",
        ParquetSource,
    ),
    "ham10000": DataSet(
        "dermoscopy of skin lesions from four real sites, benign or malignant",
        "HAM10000 (Tschandl et al., 2018), sites after FLamby",
        "lesion, one picture each",
        "ham10000_128.parquet",
        _ham10000,
    ),
    "ham10000_diagnoses": DataSet(
        "the same pictures by their seven diagnoses",
        "HAM10000 (Tschandl et al., 2018), sites after FLamby",
        "lesion, one picture each",
        "ham10000_128.parquet",
        ParquetSource,
    ),
    "mnist": DataSet(
        "handwritten digits",
        "LeCun et al., 1998",
        "every picture by itself; the published test set is kept",
        "mnist.npz",
        ArraySource,
    ),
    "cifar10": DataSet(
        "photographs of ten kinds of things",
        "Krizhevsky, 2009",
        "every picture by itself; the published test set is kept",
        "cifar10_jpeg.parquet",
        ParquetSource,
    ),
}


def open_source(
    name_or_path: str, *, folder: Path | None = None, patients: str = GIVEN, subgroups: tuple[str, ...] = ()
) -> Source:
    """Open a data set by name, or a user's own by path: a folder of class folders, an ``.npz`` or a ``.parquet``.

    A name is looked for in ``folder`` and nowhere else where one is given, else in the folder that the environment
    variable FEDPLATFORM_DATA names, in ``data`` and in ``../shared/data``. Raises DataError that says where it looked.
    ``patients`` is of :class:`FolderSource` and :class:`ParquetSource`; another set says itself which scans belong
    together. ``subgroups`` is of :class:`ParquetSource`.
    """
    if subgroups and not name_or_path.lower().endswith(".parquet"):
        raise DataError(f"subgroups are columns of a Parquet file, got {', '.join(subgroups)} for {name_or_path}")
    if name_or_path in DATA_SETS:
        if patients != GIVEN:
            raise DataError(f"{name_or_path} says itself which scans are of one patient, got patients={patients!r}")
        data_set = DATA_SETS[name_or_path]
        return data_set.open(Path() if data_set.file is None else _locate(data_set.file, folder))
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return FolderSource(path, patients=patients)
    if not path.exists():
        near = difflib.get_close_matches(name_or_path, DATA_SETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(DATA_SETS)}"
        raise DataError(f"no data set and no path is called {name_or_path!r}; {hint}")
    match path.suffix.lower():
        case ".npz":
            if patients not in (GIVEN, NOBODY):
                raise DataError(f"{path}: an .npz names no patients, got patients={patients!r}")
            return ArraySource(path)
        case ".parquet":
            return ParquetSource(path, patients=patients, subgroups=subgroups)
    raise DataError(f"{path}: a data set is a folder, an .npz or a .parquet file")


def open_with_patients(path: str) -> tuple[Source, Index, FoundPattern | None]:
    """A user's own data, with the patients of its file names where nothing else names any, and the pattern of these."""
    source = open_source(path)
    index = Index.of(source)
    found = find_pattern(source.file_names) if isinstance(source, FolderSource) and index.groups is None else None
    if found is not None:
        source = open_source(path, patients=found.pattern)
        index = Index.of(source)
    return source, index, found


def is_own(name_or_path: object) -> bool:
    """Whether this is a user's own data: a folder, an .npz or a .parquet file that is there, and no known name."""
    if not isinstance(name_or_path, str) or name_or_path in DATA_SETS:
        return False
    path = Path(name_or_path).expanduser()
    return path.is_dir() or (path.is_file() and path.suffix.lower() in (".npz", ".parquet"))


def _locate(file: str, folder: Path | None) -> Path:
    if folder is not None:
        places = [folder]
    else:
        named = os.environ.get(ENVIRONMENT)
        places = [Path(place) for place in (named, "data", "../shared/data") if place]
    for place in places:
        if (place / file).is_file():
            return place / file
    looked = ", ".join(str(place) for place in places)
    raise DataError(f"no {file} in {looked}; name its folder or set {ENVIRONMENT}")
