from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fedplatform.core.seeding import numpy_generator
from fedplatform.data.lesions import BATCH_PATIENTS, Lesions
from fedplatform.data.scanner import Scanner
from fedplatform.data.source import Selective, Source
from fedplatform.data.tissue import Tissue

SMALL = Lesions(hospitals=2, patients_per_hospital=4, slices_per_patient=2)


def scans(lesions: Lesions, *, size: int = 64, channels: int = 1) -> np.ndarray:
    return np.concatenate(list(lesions.images(size=size, channels=channels)))


def column(lesions: Lesions, name: str) -> np.ndarray:
    return lesions.index()[name].to_numpy(zero_copy_only=False)


def histogram(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1) / 255
    percentiles = np.percentile(flat, [1, 5, 10, 25, 50, 75, 90, 95, 99], axis=1).T
    return np.column_stack([flat.mean(axis=1), flat.std(axis=1), percentiles])


@pytest.fixture(scope="module")
def ten_hospitals() -> tuple[Lesions, np.ndarray]:
    lesions = Lesions(patients_per_hospital=40, slices_per_patient=1)
    return lesions, scans(lesions)


def test_lesions_are_a_source():
    assert isinstance(SMALL, Source)
    assert SMALL.classes == ("healthy", "lesion")
    assert SMALL.channels == 1


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("channels", [1, 3])
def test_scans_come_as_bytes_in_the_shape_asked_for(size, channels):
    images = scans(SMALL, size=size, channels=channels)
    assert images.shape == (SMALL.index().num_rows, channels, size, size)
    assert images.dtype == np.uint8
    assert (images == images[:, :1]).all()
    assert images.min() < 30
    assert images.max(axis=(1, 2, 3)).min() > 100


def test_the_same_seed_gives_the_same_scans_and_another_seed_gives_others():
    assert np.array_equal(scans(SMALL), scans(Lesions(hospitals=2, patients_per_hospital=4, slices_per_patient=2)))
    other = Lesions(hospitals=2, patients_per_hospital=4, slices_per_patient=2, seed=1)
    assert not np.array_equal(scans(SMALL), scans(other))


def test_a_patient_looks_the_same_however_many_others_there_are():
    more = Lesions(hospitals=3, patients_per_hospital=5, slices_per_patient=2)
    few, many = scans(SMALL).reshape(2, 4, -1), scans(more).reshape(3, 5, -1)
    assert np.array_equal(few, many[:2, :4])


def test_some_scans_alone_are_those_of_all_scans():
    lesions = Lesions(hospitals=1, patients_per_hospital=BATCH_PATIENTS + 9, slices_per_patient=2)
    rows = np.array([0, 3, 4, 5, 2 * BATCH_PATIENTS + 17])
    some = list(lesions.images_at(rows, size=32, channels=1))
    assert np.array_equal(np.concatenate(some), scans(lesions, size=32)[rows])
    assert isinstance(lesions, Selective)


def test_no_batch_holds_more_than_a_few_hundred_scans():
    lesions = Lesions(hospitals=1, patients_per_hospital=BATCH_PATIENTS + 1, slices_per_patient=1)
    assert [len(batch) for batch in lesions.images(size=32, channels=1)] == [BATCH_PATIENTS, 1]


def test_a_patient_has_one_label_one_site_and_one_fold():
    rows = Lesions().index().to_pandas()
    assert (rows.groupby("group")[["label", "site", "fold"]].nunique() == 1).all(axis=None)
    assert rows["group"].nunique() == 800
    assert rows.dtypes[["label", "group", "fold"]].eq("int64").all()


@pytest.mark.parametrize("patients", [7, 20, 80])
def test_folds_are_balanced_within_every_site_and_label(patients):
    rows = Lesions(patients_per_hospital=patients, slices_per_patient=1).index().to_pandas()
    assert set(rows["fold"]) == set(range(10))
    counts = rows.groupby(["site", "label"])["fold"].value_counts().unstack(fill_value=0)
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1
    overall = rows.groupby("label")["fold"].value_counts()
    assert (overall.groupby("label").max() - overall.groupby("label").min()).max() <= 1


def test_every_scan_of_a_lesion_patient_shows_the_lesion_and_no_other_scan_changes(ten_hospitals):
    lesions, images = ten_hospitals
    twins = np.concatenate(list(lesions.healthy_twins(size=64, channels=1)))
    changed = (np.abs(images.astype(int) - twins) > 10).sum(axis=(1, 2, 3))
    labels = column(lesions, "label")
    assert changed[labels == 1].min() >= 10
    assert changed[labels == 0].max() == 0


def test_the_outer_slices_of_a_lesion_patient_still_show_the_lesion():
    lesions = Lesions(hospitals=3, patients_per_hospital=4, slices_per_patient=5)
    twins = np.concatenate(list(lesions.healthy_twins(size=64, channels=1)))
    changed = (np.abs(scans(lesions).astype(int) - twins) > 10).sum(axis=(1, 2, 3))
    assert changed[column(lesions, "label") == 1].min() >= 10


def test_a_histogram_tells_the_scanner(ten_hospitals):
    lesions, images = ten_hospitals
    centroids = make_pipeline(StandardScaler(), NearestCentroid())
    accuracy = cross_val_score(centroids, histogram(images), column(lesions, "site"), cv=5).mean()
    assert accuracy > 0.35  # chance is 0.1


def test_a_histogram_does_not_tell_the_label(ten_hospitals):
    lesions, images = ten_hospitals
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = GroupKFold(5).split(images, groups=column(lesions, "group"))
    accuracy = cross_val_score(regression, histogram(images), column(lesions, "label"), cv=list(folds)).mean()
    assert accuracy < 0.65


def test_a_scanner_sees_nothing_where_there_is_no_tissue():
    scanner = Scanner.draw(numpy_generator(0, "scanner"), (0.5,) * len(Tissue))
    picture = scanner(np.zeros((len(Tissue), *scanner.bias.shape), np.float32), numpy_generator(0, "exposure"))
    assert picture.mean() < 2 * scanner.noise


@pytest.mark.parametrize("field", ["hospitals", "patients_per_hospital", "slices_per_patient"])
def test_a_data_set_of_nobody_is_refused(field):
    with pytest.raises(ValueError, match=f"Lesions needs {field} >= 1, got 0"):
        Lesions(**{field: 0})


def test_two_channels_are_refused():
    with pytest.raises(ValueError, match="1 or 3 channels, got channels=2"):
        next(SMALL.images(size=64, channels=2))


def test_a_size_of_nothing_is_refused():
    with pytest.raises(ValueError, match="size >= 1, got size=0"):
        next(SMALL.images(size=0, channels=1))
