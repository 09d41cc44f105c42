from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.ndimage import gaussian_filter

from fedplatform.data.index import Index
from fedplatform.data.leakage import audit, find_groups, groups_of, thumbnail
from fedplatform.data.pictures import batches
from fedplatform.data.sources import open_source

REAL = Path(__file__).parents[3] / "shared" / "data"


@dataclass(frozen=True, eq=False)
class Held:
    """A source of pictures (n, h, w) that are in memory."""

    pictures: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] = ("a", "b")
    channels: int = 1

    def index(self) -> pa.Table:
        return pa.table({"label": self.labels})

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        return batches(self.pictures, size=size, channels=channels)


def blobs(count: int, *, seed: int) -> np.ndarray:
    """Pictures (count, 64, 64) that are unlike each other and have no symmetry."""
    noise = np.random.default_rng(seed).standard_normal((count, 64, 64))
    smooth = gaussian_filter(noise, (0, 4, 4))
    return np.uint8(np.clip(128 + 60 * smooth / smooth.std(), 40, 255))


def flipped(pictures: np.ndarray) -> np.ndarray:
    """A brightened, flipped or turned twin of every picture."""
    twins = [np.rot90(picture if number % 2 else picture.T, number % 4) for number, picture in enumerate(pictures)]
    return np.uint8(np.clip(1.2 * np.stack(twins).astype(float), 0, 255))


def test_a_flipped_turned_and_brightened_twin_is_found_and_a_stranger_is_not() -> None:
    originals = blobs(40, seed=0)
    pictures = np.concatenate([originals, flipped(originals)])
    thumbnails = np.stack([thumbnail(picture) for picture in pictures])
    groups = find_groups(thumbnails, np.zeros(80, np.int64))
    assert (groups[:40] == groups[40:]).all()
    assert len(np.unique(groups)) == 40


def test_groups_never_cross_a_class() -> None:
    originals = blobs(20, seed=1)
    thumbnails = np.stack([thumbnail(picture) for picture in np.concatenate([originals, originals])])
    groups = find_groups(thumbnails, np.repeat([0, 1], 20))
    assert len(np.unique(groups)) == 40


def test_groups_are_the_same_whatever_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    originals = blobs(30, seed=2)
    thumbnails = np.stack(
        [thumbnail(picture) for picture in np.concatenate([originals, flipped(originals), originals])]
    )
    labels = np.tile(np.arange(30) % 2, 3)
    whole = find_groups(thumbnails, labels)
    monkeypatch.setattr("fedplatform.data.leakage.BLOCK", 100)
    assert (find_groups(thumbnails, labels) == whole).all()


def test_a_dark_border_does_not_hide_a_twin_and_a_black_picture_has_none() -> None:
    picture = blobs(1, seed=3)[0]
    framed = np.zeros((100, 90), np.uint8)
    framed[20:84, 10:74] = picture
    assert thumbnail(picture) @ thumbnail(framed) > 0.99
    assert not thumbnail(np.zeros((64, 64), np.uint8)).any()


def test_an_audit_warns_where_a_random_split_would_lie() -> None:
    originals = blobs(60, seed=4)
    labels = np.arange(60) % 2
    pictures = np.concatenate([originals, np.uint8(np.clip(originals * 1.1, 0, 255)), originals[:3], originals[:1]])
    source = Held(pictures, np.concatenate([labels, labels, labels[:3], [1]]))
    report = audit(source)
    assert report.class_counts == (62, 62)
    assert (report.duplicates, report.conflicting) == (4, 3)
    assert report.given_groups is None
    assert report.found_groups == 61
    assert report.random_accuracy > 0.75
    assert report.group_safe_accuracy < 0.65
    words = " | ".join(report.warnings)
    assert "a random split lies" in words
    assert "4 of 124 scans repeat another" in words
    assert "3 of 124 scans have a copy of another class" in words
    assert "give the patients" in words


def test_an_audit_of_independent_pictures_has_nothing_to_say() -> None:
    assert audit(Held(blobs(100, seed=5), np.arange(100) % 2)).warnings == ()


def test_a_sample_is_said_to_be_one_and_an_unbalanced_class_is_named() -> None:
    report = audit(Held(blobs(120, seed=6), np.arange(120) // 110), max_scans=50, max_queries=20)
    assert (report.scans, report.searched, report.queries) == (120, 50, 20)
    words = " | ".join(report.warnings)
    assert "in a sample of 50 of 120" in words
    assert "class 'b' has 10 of 120 scans" in words


def test_a_source_without_groups_is_searched_for_them() -> None:
    originals = blobs(10, seed=7)
    source = Held(np.concatenate([originals, originals]), np.tile(np.arange(10) % 2, 2))
    groups = groups_of(source, Index.of(source))
    assert (groups[:10] == groups[10:]).all()
    assert len(np.unique(groups)) == 10


def test_br35h_scores_98_by_looking_up_pixels_and_80_when_twins_stay_together() -> None:
    if not (REAL / "br35h_128.parquet").exists():
        pytest.skip("the real data set br35h is not here")
    report = audit(open_source("br35h", folder=REAL))
    assert report.scans == 3000
    assert report.random_accuracy == pytest.approx(0.98, abs=0.012)
    assert report.group_safe_accuracy == pytest.approx(0.79, abs=0.025)
    assert report.given_groups == 438
    assert 300 < report.found_groups < 450
    assert report.twins / report.scans == pytest.approx(0.94, abs=0.02)
    assert report.warnings[0].startswith("a random split lies")
