from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from fedplatform.data.arrays import ArraySource
from fedplatform.data.brightness import stretch
from fedplatform.data.error import DataError
from fedplatform.data.folders import FolderSource
from fedplatform.data.index import Index, numbered
from fedplatform.data.merged import MergedClasses
from fedplatform.data.nifti import count_slices, read_slices
from fedplatform.data.parquet import ParquetSource
from fedplatform.data.pictures import batches, decode, fit
from fedplatform.data.source import Source
from fedplatform.data.sources import DATA_SETS, open_source

REAL = Path(__file__).parents[3] / "shared" / "data"


def all_images(source: Source, *, size: int = 8, channels: int = 1) -> np.ndarray:
    return np.concatenate(list(source.images(size=size, channels=channels)))


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_dicom(
    path: Path, pixels: np.ndarray, *, patient: str = "p1", photometric: str = "MONOCHROME2", **tags
) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientID = patient
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = photometric
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = pixels.astype(np.uint16).tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def grey(value: int, side: int = 8) -> np.ndarray:
    return np.full((side, side), value, np.uint8)


def test_a_folder_per_class_is_read_in_alphabetical_order(tmp_path: Path) -> None:
    write_png(tmp_path / "yes" / "a.png", grey(200))
    write_png(tmp_path / "no" / "b.png", grey(10))
    write_png(tmp_path / "no" / "c.bmp", grey(20))
    source = open_source(str(tmp_path))
    assert isinstance(source, Source)
    assert source.classes == ("no", "yes")
    assert source.channels == 1
    assert Index.of(source).labels.tolist() == [0, 0, 1]
    assert all_images(source)[:, 0, 0, 0].tolist() == [10, 20, 200]


def test_a_folder_below_a_class_is_a_patient_and_a_site_folder_a_site(tmp_path: Path) -> None:
    for site in ("utrecht", "lyon"):
        for patient in ("p1", "p2"):
            for kind in ("no", "yes"):
                write_png(tmp_path / f"site={site}" / kind / f"{site}-{patient}" / "1.png", grey(1))
    index = Index.of(FolderSource(tmp_path))
    assert index.sites is not None
    assert index.groups is not None
    assert sorted(set(index.sites)) == ["lyon", "utrecht"]
    assert len(np.unique(index.groups)) == 4, "the same patient in two classes is one patient"


def test_sixteen_bits_are_scaled_to_eight_and_colour_to_grey_and_back(tmp_path: Path) -> None:
    write_png(tmp_path / "a" / "deep.png", np.linspace(100, 4095, 64).reshape(8, 8).astype(np.uint16))
    write_png(tmp_path / "b" / "colour.png", np.stack([grey(250), grey(0), grey(0)], axis=2))
    source = FolderSource(tmp_path)
    flat = all_images(source)
    assert flat.dtype == np.uint8
    assert (flat[0].min(), flat[0].max()) == (0, 255)
    assert 70 < flat[1].mean() < 80  # the luma of red
    assert all_images(source, channels=3).shape == (2, 3, 8, 8)
    assert all_images(source, channels=3)[1, :, 0, 0].tolist() == [250, 0, 0]


def test_shrinking_a_picture_averages_instead_of_skipping_pixels(tmp_path: Path) -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    write_png(tmp_path / "a" / "stripes.png", stripes)
    assert np.abs(all_images(FolderSource(tmp_path), size=8)[0].astype(int) - 128).max() <= 8


def test_dicom_honours_rescale_window_and_photometric_interpretation(tmp_path: Path) -> None:
    stored = np.array([[0, 1000], [1040, 1400]])
    window = {"RescaleSlope": 1, "RescaleIntercept": -1000, "WindowCenter": 40, "WindowWidth": 81}
    write_dicom(tmp_path / "a" / "1.dcm", stored, **window)
    write_dicom(tmp_path / "b" / "2.dcm", stored, photometric="MONOCHROME1", patient="p2", **window)
    source = FolderSource(tmp_path)
    shown = all_images(source, size=2)[:, 0]
    assert shown[0].ravel().tolist() == [0, 2, 129, 255]  # -1000, 0, 40 and 400 units in a window of -0.5 to 79.5
    assert shown[1].ravel().tolist() == [255, 253, 126, 0]
    assert len(np.unique(Index.of(source).groups)) == 2


def test_dicom_without_a_window_shows_its_own_range_and_tells_its_site(tmp_path: Path) -> None:
    for number, kind in enumerate("ab"):
        write_dicom(tmp_path / kind / "scan", np.array([[500, 1500]]), patient="same", InstitutionName=f"ward {number}")
    source = FolderSource(tmp_path)
    assert all_images(source, size=2)[0, 0, 0].tolist() == [0, 255]
    index = Index.of(source)
    assert index.sites is not None
    assert index.sites.tolist() == ["ward 0", "ward 1"]
    assert len(np.unique(index.groups)) == 1


def test_nifti_gives_central_axial_slices_and_a_volume_is_a_group(tmp_path: Path) -> None:
    volume = np.zeros((10, 12, 20), np.float32)
    volume[:, 9:, :] = 100.0  # the front
    volume[0, 0, 0] = np.nan
    for kind in ("healthy", "ill"):
        (tmp_path / kind).mkdir()
        nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / kind / "brain.nii.gz")
    source = FolderSource(tmp_path, slices_per_volume=4)
    index = Index.of(source)
    assert index.groups is not None
    assert index.groups.tolist() == [0] * 4 + [1] * 4
    shown = all_images(source, size=12)
    assert shown.shape == (8, 1, 12, 12)
    assert shown[0, 0, 0].min() == 255, "the front of the head is up"
    assert shown[0, 0, -1].max() == 0


def test_a_volume_stored_in_another_orientation_gives_the_same_slices(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    image = nib.Nifti1Image(volume, np.eye(4))
    turned = image.as_reoriented(np.array([[2, 1], [0, -1], [1, 1]]))
    for kind, stored in (("a", image), ("b", turned)):
        (tmp_path / kind).mkdir()
        nib.save(stored, tmp_path / kind / "v.nii")
    shown = all_images(FolderSource(tmp_path, slices_per_volume=2))
    assert (shown[:2] == shown[2:]).all()


def write_medmnist(path: Path, *, colour: bool = False) -> np.ndarray:
    generator = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, rows in (("train", 150), ("val", 20), ("test", 30)):
        arrays[f"{part}_images"] = generator.integers(0, 256, (rows, 8, 8, 3) if colour else (rows, 8, 8), np.uint8)
        arrays[f"{part}_labels"] = np.arange(rows, dtype=np.uint8)[:, None] % 3
    np.savez_compressed(path, **arrays)
    return np.concatenate([arrays[f"{part}_images"] for part in ("train", "val", "test")])


@pytest.mark.parametrize("colour", [False, True])
def test_the_medmnist_layout_keeps_its_published_split(tmp_path: Path, colour: bool) -> None:
    stored = write_medmnist(tmp_path / "set.npz", colour=colour)
    source = open_source(str(tmp_path / "set.npz"))
    index = Index.of(source)
    assert index.splits is not None
    assert [int((index.splits == part).sum()) for part in ("train", "validation", "test")] == [150, 20, 30]
    assert source.classes == ("0", "1", "2")
    assert source.channels == (3 if colour else 1)
    read = all_images(source, channels=source.channels)
    assert (read == (stored.transpose(0, 3, 1, 2) if colour else stored[:, None])).all()


def test_the_keras_layout_is_read_and_its_test_set_kept(tmp_path: Path) -> None:
    images = np.arange(10 * 16, dtype=np.uint8).reshape(10, 4, 4)
    labels = np.arange(10, dtype=np.uint8) % 2
    np.savez(tmp_path / "k.npz", x_train=images[:8], y_train=labels[:8], x_test=images[8:], y_test=labels[8:])
    source = ArraySource(tmp_path / "k.npz")
    index = Index.of(source)
    assert index.splits is not None
    assert index.splits.tolist() == ["train"] * 8 + ["test"] * 2
    assert (all_images(source, size=4)[:, 0] == images).all()


def write_parquet(path: Path, columns: dict[str, object], metadata: dict[str, str] | None = None) -> None:
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def test_parquet_takes_struct_and_binary_pictures_and_words_as_labels(tmp_path: Path) -> None:
    pictures = [png(grey(value)) for value in (10, 20, 30)]
    structs = [{"bytes": data, "path": "x"} for data in pictures]
    write_parquet(tmp_path / "s.parquet", {"image": structs, "label": [1, 0, 1]}, {"classes": "no,yes"})
    write_parquet(tmp_path / "b.parquet", {"image": pictures, "label": ["yes", "no", "yes"], "group": ["p", "q", "p"]})
    for name in ("s", "b"):
        source = open_source(str(tmp_path / f"{name}.parquet"))
        assert source.classes == ("no", "yes")
        assert Index.of(source).labels.tolist() == [1, 0, 1]
        assert all_images(source)[:, 0, 0, 0].tolist() == [10, 20, 30]
    groups = Index.of(ParquetSource(tmp_path / "b.parquet")).groups
    assert groups is not None
    assert groups.tolist() == [0, 1, 0]


def test_a_merged_class_disappears_and_its_scans_stay(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "m.parquet",
        {"image": [png(grey(1))] * 4, "label": [0, 1, 2, 3]},
        {"classes": "none,very mild,mild,moderate"},
    )
    source = MergedClasses(ParquetSource(tmp_path / "m.parquet"), {"very mild": "mild"})
    assert source.classes == ("none", "mild", "moderate")
    assert Index.of(source).labels.tolist() == [0, 1, 1, 2]


def test_a_name_is_found_through_the_environment_and_says_where_it_looked(tmp_path: Path, monkeypatch) -> None:
    images = np.zeros((4, 4, 4), np.uint8)
    labels = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDPLATFORM_DATA", str(tmp_path))
    assert isinstance(open_source("mnist"), ArraySource)
    with pytest.raises(DataError, match=r"no br35h_128.parquet in .*, data, \.\./shared/data; name its folder"):
        open_source("br35h")
    with pytest.raises(DataError, match=r"no br35h_128\.parquet in elsewhere; "):
        open_source("br35h", folder=Path("elsewhere"))


@pytest.mark.parametrize("name", [name for name, data_set in DATA_SETS.items() if data_set.file])
def test_a_real_set_opens_by_name(name: str) -> None:
    if not (REAL / str(DATA_SETS[name].file)).exists():
        pytest.skip(f"the real data set {name} is not here")
    source = open_source(name, folder=REAL)
    index = Index.of(source)
    classes = {"br35h": 2, "alzheimer": 3, "lc25000": 3, "ham10000": 2, "ham10000_diagnoses": 7}
    assert len(index.class_counts) == classes.get(name, 10)
    assert (index.splits is None) == (name not in ("mnist", "cifar10"))
    first = next(iter(source.images(size=16, channels=source.channels)))
    assert first.shape[1:] == (1 if name in ("br35h", "alzheimer", "mnist") else 3, 16, 16)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no scans; it needs a folder for every class"):
        Index.of(FolderSource(tmp_path))


def test_an_empty_class_is_refused_by_its_name(tmp_path: Path) -> None:
    write_png(tmp_path / "yes" / "a.png", grey(1))
    (tmp_path / "no").mkdir()
    with pytest.raises(DataError, match="no: the folder of this class is empty"):
        Index.of(FolderSource(tmp_path))


def test_one_class_only_is_refused_by_its_name(tmp_path: Path) -> None:
    write_png(tmp_path / "yes" / "a.png", grey(1))
    with pytest.raises(DataError, match="needs two classes, got scans of 'yes' only"):
        Index.of(FolderSource(tmp_path))


@pytest.mark.parametrize("name", ["broken.png", "broken.jpg", "broken.tif", "empty.png"])
def test_a_corrupt_picture_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    whole = png(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8))
    (tmp_path / "a" / name).write_bytes(whole[:200] if name.startswith("broken") else b"")
    with pytest.raises(DataError, match=f"a/{name}: not a whole picture"):
        all_images(FolderSource(tmp_path))


@pytest.mark.parametrize(("name", "says"), [("x.dcm", "not a DICOM file"), ("x.nii.gz", "not a NIfTI volume")])
def test_a_corrupt_volume_is_named(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=f"a/{name}: {says}"):
        Index.of(FolderSource(tmp_path))


def test_a_volume_cut_off_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "v.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((20, 20, 20)), np.eye(4)), path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(DataError, match=r"v.nii.gz: not a whole NIfTI volume"):
        all_images(FolderSource(tmp_path))


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    write_png(tmp_path / "a" / "1.png", grey(1))
    (tmp_path / "a" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes.txt: not a picture that can be read \(\.png"):
        Index.of(FolderSource(tmp_path))


def test_patients_for_some_scans_only_are_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a" / "p1" / "1.png", grey(1))
    write_png(tmp_path / "b" / "2.png", grey(1))
    with pytest.raises(DataError, match="1 of 2 scans name a patient; either all do or none"):
        Index.of(FolderSource(tmp_path))


def test_a_bad_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK not a zip")
    with pytest.raises(DataError, match=r"bad.npz: not a whole npz file"):
        Index.of(ArraySource(tmp_path / "bad.npz"))
    np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
    with pytest.raises(DataError, match="unknown layout, it holds pictures; known are MedMNIST: train_images"):
        Index.of(ArraySource(tmp_path / "other.npz"))
    np.savez(tmp_path / "f.npz", x_train=np.zeros((2, 4, 4)), y_train=[0, 1], x_test=np.zeros((2, 4, 4)), y_test=[0, 1])
    with pytest.raises(
        DataError, match=r"x_train must be uint8 \(n, h, w\) or \(n, h, w, 3\), got float64 \(2, 4, 4\)"
    ):
        Index.of(ArraySource(tmp_path / "f.npz"))
    images = np.zeros((2, 4, 4), np.uint8)
    np.savez(tmp_path / "l.npz", x_train=images, y_train=np.zeros((2, 14), int), x_test=images, y_test=[0, 1])
    with pytest.raises(
        DataError, match=r"every part has labels of the same findings, got train \(2, 14\), test \(2,\)"
    ):
        Index.of(ArraySource(tmp_path / "l.npz"))


def test_a_bad_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"bad.parquet: not a Parquet file"):
        Index.of(ParquetSource(tmp_path / "bad.parquet"))
    write_parquet(tmp_path / "c.parquet", {"picture": [b""], "label": [0]})
    with pytest.raises(DataError, match="needs a column 'image', got picture, label"):
        Index.of(ParquetSource(tmp_path / "c.parquet"))
    write_parquet(tmp_path / "n.parquet", {"image": [b"", b""], "label": [0, None]})
    with pytest.raises(DataError, match="column 'label' is empty in 1 of 2 rows"):
        Index.of(ParquetSource(tmp_path / "n.parquet"))
    write_parquet(tmp_path / "r.parquet", {"image": [png(grey(1)), b"x"], "label": [0, 1]})
    with pytest.raises(DataError, match=r"r.parquet: row 1: not a whole picture"):
        all_images(ParquetSource(tmp_path / "r.parquet"))
    write_parquet(tmp_path / "o.parquet", {"image": [b"", b""], "label": [0, 5]}, {"classes": "a,b"})
    with pytest.raises(DataError, match="labels of 2 classes are 0 to 1, got 0 to 5"):
        Index.of(ParquetSource(tmp_path / "o.parquet"))


def test_a_mistyped_name_gets_the_nearest_and_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'br53h'; did you mean br35h"):
        open_source("br53h")
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(DataError, match=r"a data set is a folder, an \.npz or a \.parquet file"):
        open_source(str(tmp_path / "x.csv"))


@dataclass(frozen=True)
class Told:
    """A source that has an index and no pictures."""

    columns: dict[str, object]
    classes: tuple[str, ...] = ("a", "b")
    channels: int = 1

    def index(self) -> pa.Table:
        return pa.table(self.columns)

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        return iter(())


def test_an_index_holds_every_column_that_the_source_has() -> None:
    index = Index.of(
        Told(
            {
                "label": [0, 1, 1],
                "group": pa.array([5, 6, 6], pa.int32()),
                "fold": [0, 9, 9],
                "site": ["x", "y", "y"],
                "split": ["train", "validation", "test"],
            },
            classes=("a", "b", "c"),
        )
    )
    assert index.groups is not None
    assert index.folds is not None
    assert index.sites is not None
    assert index.splits is not None
    assert (index.labels.tolist(), index.groups.tolist(), index.folds.tolist()) == ([0, 1, 1], [5, 6, 6], [0, 9, 9])
    assert (index.sites.tolist(), index.splits.tolist()) == (["x", "y", "y"], ["train", "validation", "test"])
    assert index.class_counts.tolist() == [1, 2, 0], "a class without scans is counted, too"
    some = index.at(np.array([False, True, False]))
    assert some.classes == index.classes
    columns = (some.labels, some.groups, some.folds, some.sites, some.splits)
    assert [column.tolist() for column in columns if column is not None] == [[1], [6], [9], ["y"], ["validation"]]
    bare = Index.of(Told({"label": [1, 0]})).at(np.array([True, True]))
    assert (bare.groups, bare.folds, bare.sites, bare.splits) == (None, None, None, None)


def test_a_site_may_have_scans_of_one_of_its_classes_only() -> None:
    assert Index.of(Told({"label": [1, 1]})).class_counts.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"label": pa.array([], pa.int64())}, "the data set is empty"),
        ({"group": [1, 2]}, "the index needs a column 'label', got group"),
        ({"label": [0, 2]}, "labels of 2 classes are 0 to 1, got 0 to 2"),
        ({"label": [-1, 1]}, "labels of 2 classes are 0 to 1, got -1 to 1"),
        ({"label": [0.0, 1.0]}, "column 'label' must hold whole numbers, got double"),
        ({"label": [0, 1], "group": [1.5, 2.0]}, "column 'group' must hold whole numbers, got double"),
        ({"label": [0, 1], "fold": [None, 2]}, "column 'fold' is empty in 1 of 2 rows"),
        ({"label": [0, 1], "site": ["x", None]}, "column 'site' is empty in 1 of 2 rows"),
        (
            {"label": [0, 1], "split": ["train", "dev"]},
            "a split is one of train, validation, test, got dev, train",
        ),
    ],
)
def test_an_index_that_breaks_a_rule_is_refused_with_what_it_holds(columns: dict[str, object], says: str) -> None:
    with pytest.raises(DataError, match=f"^{says}"):
        Index.of(Told(columns))


def test_names_are_numbered_by_their_first_appearance() -> None:
    assert numbered(["b", "a", "b", "c", "a"]).to_pylist() == [0, 1, 0, 2, 1]


def npz(path: Path, *, version: tuple[int, int] = (1, 0), **arrays: np.ndarray) -> ArraySource:
    """A file as np.savez writes it, but with headers of the ``version`` of the format that is asked for."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, values, version=version)
            archive.writestr(f"{name}.npy", buffer.getvalue())
    return ArraySource(path)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_pictures_with_one_channel_of_their_own_and_either_kind_of_header_are_read(
    tmp_path: Path, version: tuple[int, int]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 5, 5, 1), np.uint8)
    labels = np.arange(9)[:, None] % 2
    source = npz(
        tmp_path / "k.npz",
        version=version,
        x_train=images[:6],
        y_train=labels[:6],
        x_test=images[6:],
        y_test=labels[6:],
    )
    assert source.channels == 1
    assert np.array_equal(all_images(source, size=5)[:, 0], images[..., 0])
    assert Index.of(source).labels.tolist() == labels[:, 0].tolist()


def test_a_class_that_only_one_part_has_is_a_class(tmp_path: Path) -> None:
    images = np.zeros((2, 4, 4), np.uint8)
    for part in ("train", "val", "test"):
        arrays = {f"{name}_images": images for name in ("train", "val", "test")}
        arrays |= {f"{name}_labels": np.array([0, 4 if name == part else 1]) for name in ("train", "val", "test")}
        assert npz(tmp_path / f"{part}.npz", **arrays).classes == ("0", "1", "4")


def test_an_npz_of_another_form_is_refused(tmp_path: Path) -> None:
    images, labels = np.zeros((2, 4, 4), np.uint8), np.array([0, 1])

    def refused(*, x_train: np.ndarray = images, y_train: np.ndarray = labels, says: str) -> None:
        source = npz(tmp_path / "k.npz", x_train=x_train, y_train=y_train, x_test=images, y_test=labels)
        with pytest.raises(DataError, match=says):
            Index.of(source)

    refused(x_train=np.zeros((2, 4, 4, 2), np.uint8), says=r"x_train must be uint8 .*, got uint8 \(2, 4, 4, 2\)")
    refused(x_train=np.zeros((2, 16), np.uint8), says=r"x_train must be uint8 .*, got uint8 \(2, 16\)")
    refused(x_train=np.zeros((2, 4, 4), np.int16), says=r"x_train must be uint8 .*, got int16 \(2, 4, 4\)")
    refused(x_train=np.asfortranarray(np.zeros((2, 4, 5), np.uint8)), says="x_train is stored column by column")
    refused(
        y_train=np.array([0.0, 1.0]), says=r"y_train must hold one whole number a picture \(2\), got float64 \(2,\)"
    )
    refused(y_train=np.array([0, 1, 0]), says=r"y_train must hold one whole number a picture \(2\), got int64 \(3,\)")
    refused(y_train=np.array([[0, 1]]), says=r"y_train must hold one whole number a picture \(2\), got int64 \(1, 2\)")
    with pytest.raises(
        DataError, match=r"it holds x_train, y_train; known are MedMNIST: .*, test_images; Keras: x_train, x_test"
    ):
        Index.of(npz(tmp_path / "half.npz", x_train=images, y_train=labels))
    with pytest.raises(DataError, match="unknown layout, it holds nothing; known are"):
        Index.of(npz(tmp_path / "none.npz"))


def test_an_npz_that_is_cut_off_behind_its_headers_is_named(tmp_path: Path) -> None:
    write_medmnist(tmp_path / "set.npz")
    whole = (tmp_path / "set.npz").read_bytes()
    broken = bytearray(whole)
    broken[300:400] = bytes(100)
    (tmp_path / "set.npz").write_bytes(broken)
    with pytest.raises(DataError, match=r"set\.npz: not a whole npz file"):
        all_images(ArraySource(tmp_path / "set.npz"))


def test_parquet_keeps_fold_site_and_published_split_by_whatever_name(tmp_path: Path) -> None:
    pictures = [png(grey(1))] * 5
    names = ["train", "val", "valid", "validation", "test"]
    columns = {"image": pictures, "label": [0, 1, 0, 1, 0], "fold": [3, 1, 4, 1, 5], "site": list("vwxyz")}
    for column in ("split", "orig_split"):
        write_parquet(tmp_path / "s.parquet", columns | {column: names})
        index = Index.of(ParquetSource(tmp_path / "s.parquet"))
        assert index.splits is not None
        assert index.folds is not None
        assert index.sites is not None
        assert index.splits.tolist() == ["train", "validation", "validation", "validation", "test"]
        assert index.folds.tolist() == [3, 1, 4, 1, 5]
        assert index.sites.tolist() == list("vwxyz")
        assert index.groups is None
    write_parquet(tmp_path / "s.parquet", columns | {"orig_split": ["dev"] * 5, "split": ["test"] * 5})
    splits = Index.of(ParquetSource(tmp_path / "s.parquet")).splits
    assert splits is not None
    assert set(splits) == {"test"}, "of two columns the one that is called split counts"
    write_parquet(tmp_path / "s.parquet", columns | {"split": [*names[:3], "dev", "held out"]})
    with pytest.raises(DataError, match="column 'split' knows train, val, valid, validation, test, got dev, held out"):
        Index.of(ParquetSource(tmp_path / "s.parquet"))


def test_the_classes_of_a_parquet_file_are_named_by_the_first_that_names_them(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    numbers = {"image": [png(grey(1))] * 2, "label": [0, 2]}
    hub = json.dumps({"info": {"features": {"label": {"names": ["x", "y", "z"]}}}})
    for metadata, classes in (
        ({"classes": "p,q,r", "huggingface": hub}, ("p", "q", "r")),
        ({"huggingface": hub}, ("x", "y", "z")),
        ({"huggingface": "{}"}, ("0", "2")),
        ({"huggingface": json.dumps({"info": {"features": {"label": {"dtype": "int64"}}}})}, ("0", "2")),
        (None, ("0", "2")),
    ):
        write_parquet(path, numbers, metadata)
        assert ParquetSource(path).classes == classes
    words = pa.array(["b", None, "a", "b"])
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        write_parquet(path, {"image": [b""] * 4, "label": words.cast(kind)}, {"classes": "p,q,r"})
        assert ParquetSource(path).classes == ("a", "b")
        assert ParquetSource(path).index().column("label").to_pylist() == [1, None, 0, 1]
    write_parquet(path, {"image": [b""], "label": pa.array([None], pa.int64())})
    assert ParquetSource(path).classes == ()


def test_groups_of_a_parquet_file_are_numbers_or_words_of_any_kind(tmp_path: Path) -> None:
    path = tmp_path / "g.parquet"
    words = pa.array(["p", "q", "p"])
    kinds = [words, words.cast(pa.large_string()), words.dictionary_encode(), pa.array([7, 3, 7])]
    for column, numbers in zip(kinds, [[0, 1, 0]] * 3 + [[7, 3, 7]], strict=True):
        write_parquet(path, {"image": [b""] * 3, "label": [0, 1, 0], "group": column})
        groups = Index.of(ParquetSource(path)).groups
        assert groups is not None
        assert groups.tolist() == numbers


def test_a_parquet_file_longer_than_a_batch_is_read_in_order_and_a_gap_is_named(tmp_path: Path) -> None:
    path = tmp_path / "long.parquet"
    values = [number % 251 for number in range(150)]
    pictures: list[bytes | None] = [png(grey(value, side=2)) for value in values]
    write_parquet(path, {"image": pictures, "label": [0] * 150})
    assert all_images(ParquetSource(path), size=2)[:, 0, 0, 0].tolist() == values
    assert ParquetSource(path).channels == 1
    pictures[70] = None
    write_parquet(path, {"image": pictures, "label": [0] * 150})
    with pytest.raises(DataError, match=r"long\.parquet: row 70 holds no picture bytes"):
        all_images(ParquetSource(path))
    pictures[70] = b"x"
    write_parquet(path, {"image": pictures, "label": [0] * 150})
    with pytest.raises(DataError, match=r"long\.parquet: row 70: not a whole picture"):
        all_images(ParquetSource(path))
    write_parquet(path, {"image": [png(np.zeros((2, 2, 3), np.uint8))], "label": [0]})
    assert ParquetSource(path).channels == 3


def test_what_a_computer_leaves_in_folders_is_no_scan(tmp_path: Path) -> None:
    write_png(tmp_path / "no" / "p1" / "a.PNG", grey(10))
    write_png(tmp_path / "yes" / "p2" / "b.png", grey(20))
    for junk in ("no/Thumbs.db", "no/p1/desktop.ini", "yes/.DS_Store", "yes/.cache/c.png", "yes/__MACOSX/c.png"):
        (tmp_path / junk).parent.mkdir(exist_ok=True)
        (tmp_path / junk).write_bytes(b"junk")
    for folder in (".git", "__pycache__"):
        (tmp_path / folder).mkdir()
    (tmp_path / "README.txt").write_text("beside the classes")
    source = FolderSource(tmp_path)
    assert source.classes == ("no", "yes")
    assert all_images(source)[:, 0, 0, 0].tolist() == [10, 20]


def test_sites_are_told_by_all_folders_or_by_none(tmp_path: Path) -> None:
    write_png(tmp_path / "site=lyon" / "a" / "1.png", grey(1))
    write_png(tmp_path / "b" / "2.png", grey(1))
    with pytest.raises(DataError, match="either every folder is a site=NAME or none, got 1/2"):
        Index.of(FolderSource(tmp_path))
    with pytest.raises(DataError, match="nowhere: no such folder"):
        Index.of(FolderSource(tmp_path / "nowhere"))


def test_the_folder_names_the_site_before_the_file_does_and_the_file_the_patient_before_the_folder(
    tmp_path: Path,
) -> None:
    pixels = np.array([[0, 1000]])
    write_dicom(tmp_path / "site=lyon" / "a" / "folder" / "1.dcm", pixels, patient="p1", InstitutionName="ward")
    write_dicom(tmp_path / "site=lyon" / "b" / "2.dcm", pixels, patient="p1", InstitutionName="ward")
    write_dicom(tmp_path / "site=lyon" / "b" / "folder" / "3.dcm", pixels, patient="", InstitutionName="ward")
    write_dicom(tmp_path / "site=lyon" / "b" / "other" / "4.dcm", pixels, patient="")
    index = Index.of(FolderSource(tmp_path))
    assert index.sites is not None
    assert index.groups is not None
    assert index.sites.tolist() == ["lyon"] * 4
    assert index.groups.tolist() == [0, 0, 1, 2]


def test_a_site_that_only_some_files_name_is_no_site(tmp_path: Path) -> None:
    pixels = np.array([[0, 1000]])
    write_dicom(tmp_path / "a" / "1.dcm", pixels, InstitutionName="ward")
    write_dicom(tmp_path / "b" / "2.dcm", pixels)
    assert Index.of(FolderSource(tmp_path)).sites is None


def test_frames_without_a_patient_are_a_group_and_one_frame_is_none(tmp_path: Path) -> None:
    for kind in "ab":
        write_dicom(
            tmp_path / kind / "film.dcm",
            np.array([[0, 1000], [500, 2000]]),
            patient="",
            Rows=1,
            Columns=2,
            NumberOfFrames=2,
        )
    index = Index.of(FolderSource(tmp_path))
    assert index.groups is not None
    assert index.groups.tolist() == [0, 0, 1, 1]
    assert len(all_images(FolderSource(tmp_path))) == 4
    for kind in "cd":
        write_dicom(tmp_path / "single" / kind / "1.dcm", np.array([[0, 1000]]), patient="")
    assert Index.of(FolderSource(tmp_path / "single")).groups is None


def test_a_volume_in_a_patients_folder_is_of_that_patient(tmp_path: Path) -> None:
    volume = nib.Nifti1Image(np.arange(4 * 4 * 3, dtype=np.int16).reshape(4, 4, 3), np.eye(4))
    for place in ("a/p1/1.nii", "a/p1/2.nii.gz", "b/p2/1.nii"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        nib.save(volume, tmp_path / place)
    index = Index.of(FolderSource(tmp_path))
    assert index.groups is not None
    assert index.groups.tolist() == [0] * 6 + [1] * 3, "three slices each: there are no eight"


def saved(path: Path, volume: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
    return path


@pytest.mark.parametrize(
    ("depth", "at_most", "central"), [(7, 3, [2, 3, 4]), (8, 3, [2, 3, 4]), (2, 8, [0, 1]), (5, 1, [2])]
)
def test_the_central_slices_are_those_with_as_many_below_as_above(
    tmp_path: Path, depth: int, at_most: int, central: list[int]
) -> None:
    volume = np.broadcast_to(np.arange(depth, dtype=np.float32) * 10, (3, 4, depth))
    path = saved(tmp_path / "v.nii", np.ascontiguousarray(volume))
    assert count_slices(path, at_most=at_most) == len(central)
    low, high = np.percentile(volume, (0.5, 99.5))
    expected = [round(255 * float(np.clip((10 * level - low) / (high - low), 0, 1))) for level in central]
    assert [int(picture[0, 0]) for picture in read_slices(path, at_most=at_most)] == expected


def test_a_slice_is_seen_from_the_feet_with_the_front_up(tmp_path: Path) -> None:
    volume = np.zeros((2, 3, 1), np.float32)
    volume[1, 2, 0] = 100.0  # to the patient's right hand side is x = 0, so this is left and in front
    (picture,) = read_slices(saved(tmp_path / "v.nii", volume), at_most=1)
    assert picture.tolist() == [[255, 0], [0, 0], [0, 0]]


def test_the_darkest_and_brightest_half_percent_are_cut_off_and_no_number_is_black(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(100, 10, (20, 20, 3)).astype(np.float32)
    volume[3, 4, 1], volume[5, 6, 1], volume[7, 8, 1] = np.nan, np.inf, -np.inf
    volume[9, 10, 1] = 1e6  # a vessel
    finite = np.sort(volume[np.isfinite(volume)])
    cut = int(0.005 * (finite.size - 1))
    low, high = finite[cut], finite[-1 - cut]
    (picture,) = read_slices(saved(tmp_path / "v.nii", volume), at_most=1)
    plane = np.nan_to_num(volume[:, :, 1].astype(np.float64), nan=low, posinf=high, neginf=low)
    exact = 255 * (np.clip(plane, low, high) - low) / (high - low)
    assert np.abs(picture - exact[::-1, ::-1].T).max() <= 0.51
    seen = picture.T[::-1, ::-1]
    assert (seen[3, 4], seen[5, 6], seen[7, 8], seen[9, 10]) == (0, 255, 0, 255)


def test_a_volume_is_of_three_dimensions_and_holds_a_number(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).random((4, 4, 4)).astype(np.float32)
    flat = read_slices(saved(tmp_path / "v.nii", cube), at_most=2)
    one_moment = read_slices(saved(tmp_path / "w.nii", cube[..., None]), at_most=2)
    assert np.array_equal(np.stack(one_moment), np.stack(flat))
    for volume, says in (
        (np.stack([cube, cube], axis=3), r"needs one 3-D volume, got shape \(4, 4, 4, 2\)"),
        (cube[:, :, 0], r"needs one 3-D volume, got shape \(4, 4\)"),
        (np.full_like(cube, np.nan), "holds no finite voxel"),
        (cube.astype(np.complex64), "needs voxels that are real numbers, got complex64"),
    ):
        with pytest.raises(DataError, match=rf"x\.nii: {says}"):
            read_slices(saved(tmp_path / "x.nii", volume), at_most=1)


def test_a_range_is_stretched_to_all_of_eight_bits_and_a_flat_one_is_black() -> None:
    assert stretch(np.array([-5.0, 0.0, 1.0, 4.0, 5.0, 9.0]), low=0.0, high=5.0).tolist() == [0, 0, 51, 204, 255, 255]
    assert stretch(np.array([3.0, 3.0]), low=3.0, high=3.0).tolist() == [0, 0]
    assert stretch(np.array([3.0, 3.0]), low=4.0, high=3.0).tolist() == [0, 0]


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_every_mode_of_a_picture_is_grey_or_colour() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    image = Image.fromarray(colour)
    for mode in ("1", "L", "LA"):
        read = decode(encoded(image.convert(mode), "PNG"), name="x")
        assert np.array_equal(read, np.asarray(image.convert(mode).convert("L"))), mode
    for mode in ("RGB", "RGBA", "P"):
        read = decode(encoded(image.convert(mode), "PNG"), name="x")
        assert np.array_equal(read, np.asarray(image.convert(mode).convert("RGB"))), mode


def test_deep_pictures_are_stretched_from_their_own_darkest_to_their_own_brightest() -> None:
    values = np.array([[1000, 1300, 2000]])
    for image, kind in (
        (Image.fromarray(values.astype(np.uint16)), "PNG"),
        (Image.fromarray(values.astype(np.int32)), "TIFF"),
        (Image.fromarray(values.astype(np.float32)), "TIFF"),
    ):
        assert decode(encoded(image, kind), name="x").tolist() == [[0, 76, 255]], image.mode
    bad = Image.fromarray(np.array([[0.0, np.inf]], np.float32))
    with pytest.raises(DataError, match="x: holds pixels that are not finite"):
        decode(encoded(bad, "TIFF"), name="x")


def test_a_picture_is_made_square_by_stretching_and_one_of_the_right_size_stays_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (4, 4), np.uint8)
    assert np.array_equal(fit(picture, size=4, channels=1), picture[None])
    assert np.array_equal(fit(picture, size=4, channels=3), np.stack([picture] * 3))
    wide = np.array([[0, 200], [0, 200]], np.uint8).repeat(4, axis=1)
    assert fit(wide, size=2, channels=1).shape == (1, 2, 2)
    assert (fit(wide, size=2, channels=1)[0, :, 1] > 150).all()
    assert (fit(wide, size=2, channels=1)[0, :, 0] < 50).all()


@pytest.mark.parametrize("count", [0, 1, 127, 128, 129, 256, 300])
def test_pictures_come_in_batches_of_128_and_none_is_lost(count: int) -> None:
    pictures = [np.full((2, 2), number % 256, np.uint8) for number in range(count)]
    given = list(batches(iter(pictures), size=1, channels=1))
    assert [len(batch) for batch in given] == [128] * (count // 128) + [count % 128] * (count % 128 > 0)
    assert [int(picture[0, 0, 0]) for batch in given for picture in batch] == [n % 256 for n in range(count)]


@pytest.mark.parametrize(
    ("wrong", "says"), [({"channels": 2}, "1 or 3 channels, got channels=2"), ({"size": 0}, "size >= 1, got size=0")]
)
def test_pictures_of_no_size_or_two_channels_are_refused(wrong: dict[str, int], says: str) -> None:
    with pytest.raises(DataError, match=says):
        next(batches([grey(1)], **({"size": 4, "channels": 1} | wrong)))


def test_a_class_that_is_not_there_cannot_be_merged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class 'c' to merge; the classes are a, b"):
        _ = MergedClasses(Told({"label": [0, 1]}), {"c": "a"}).classes


def test_all_classes_can_be_merged_into_new_ones(tmp_path: Path) -> None:
    columns = {"image": [png(grey(1))] * 4, "label": [0, 1, 2, 3]}
    write_parquet(tmp_path / "m.parquet", columns, {"classes": "bcc,mel,nevus,wart"})
    into = {"nevus": "benign", "wart": "benign", "bcc": "malignant", "mel": "malignant"}
    source = MergedClasses(ParquetSource(tmp_path / "m.parquet"), into)
    assert source.classes == ("benign", "malignant")
    assert Index.of(source).labels.tolist() == [1, 1, 0, 0]


def test_a_merged_source_keeps_its_groups_channels_and_pictures(tmp_path: Path) -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    columns = {"image": [png(picture)] * 3, "group": [4, 5, 6], "label": [2, 1, 0]}
    write_parquet(tmp_path / "m.parquet", columns, {"classes": "x,y,z"})
    source = MergedClasses(ParquetSource(tmp_path / "m.parquet"), {"x": "z"})
    index = Index.of(source)
    assert index.groups is not None
    assert (source.classes, index.labels.tolist(), index.groups.tolist()) == (("y", "z"), [1, 0, 1], [4, 5, 6])
    assert source.channels == 3
    assert np.array_equal(all_images(source, size=4, channels=3)[0], picture.transpose(2, 0, 1))


def test_a_path_is_opened_by_its_suffix_in_any_case_and_a_strange_name_gets_the_list(
    tmp_path: Path, monkeypatch
) -> None:
    write_medmnist(tmp_path / "set.npz")
    (tmp_path / "set.npz").rename(tmp_path / "SET.NPZ")
    assert isinstance(open_source(str(tmp_path / "SET.NPZ")), ArraySource)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert isinstance(open_source("~/SET.NPZ"), ArraySource)
    with pytest.raises(DataError, match="no data set and no path is called 'zzz'; the names are lesions, "):
        open_source("zzz")


def test_the_place_that_is_named_goes_before_the_one_that_is_not(tmp_path: Path, monkeypatch) -> None:
    for place, rows in (("named", 4), ("data", 6)):
        (tmp_path / place).mkdir()
        images, labels = np.zeros((rows, 4, 4), np.uint8), np.arange(rows) % 2
        np.savez(tmp_path / place / "mnist.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDPLATFORM_DATA", str(tmp_path / "named"))
    assert open_source("mnist").index().num_rows == 8
    assert open_source("mnist", folder=tmp_path / "data").index().num_rows == 12
    monkeypatch.delenv("FEDPLATFORM_DATA")
    assert open_source("mnist").index().num_rows == 12


@pytest.mark.parametrize(
    "suffix", ["png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp", "pgm", "ppm", "PNG", "Jpg"]
)
def test_every_kind_of_picture_is_read_by_its_suffix(tmp_path: Path, suffix: str) -> None:
    for kind, value in (("a", 40), ("b", 200)):
        write_png(
            tmp_path / kind / f"1.{suffix}", np.full((8, 8, 3), value, np.uint8) if suffix == "ppm" else grey(value)
        )
    assert np.abs(all_images(FolderSource(tmp_path))[:, 0, 0, 0].astype(int) - [40, 200]).max() <= 1


@pytest.mark.parametrize("name", ["1.dcm", "1.dicom", "1.IMA", "1"])
def test_every_name_of_a_dicom_file_is_known(tmp_path: Path, name: str) -> None:
    for kind in "ab":
        write_dicom(tmp_path / kind / name, np.array([[0, 1000]]))
    assert all_images(FolderSource(tmp_path), size=2)[:, 0, 0].tolist() == [[0, 255]] * 2
