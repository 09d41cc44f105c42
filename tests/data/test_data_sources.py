from __future__ import annotations

import io
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
from fedplatform.data.error import DataError
from fedplatform.data.folders import FolderSource
from fedplatform.data.index import Index
from fedplatform.data.merged import MergedClass
from fedplatform.data.parquet import ParquetSource
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
    source = MergedClass(ParquetSource(tmp_path / "m.parquet"), merge="very mild", into="mild")
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
    assert len(index.class_counts) == {"br35h": 2, "alzheimer": 3, "lc25000": 3}.get(name, 10)
    assert (index.splits is None) == (name not in ("mnist", "cifar10"))
    first = next(iter(source.images(size=16, channels=source.channels)))
    assert first.shape[1:] == (3 if name in ("lc25000", "cifar10") else 1, 16, 16)


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
    with pytest.raises(DataError, match=r"y_train must hold one whole number a picture \(2\), got int64 \(2, 14\)"):
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
