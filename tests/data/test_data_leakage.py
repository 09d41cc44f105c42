from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from fedplatform.data.index import Index
from fedplatform.data.joined_groups import JoinedGroups
from fedplatform.data.leakage import (
    audit,
    find_groups,
    groups_of,
    search_groups,
    share_on_both_sides,
    thumbnail,
    thumbnails_of,
)
from fedplatform.data.pictures import batches
from fedplatform.data.sources import open_source
from fedplatform.data.splits import assign_roles

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


def test_an_audit_warns_where_a_random_split_would_overestimate_accuracy() -> None:
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
    assert "a random split overestimates accuracy" in words
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


def test_br35h_scores_98_by_looking_up_pixels_and_77_when_twins_stay_together() -> None:
    if not (REAL / "br35h_128.parquet").exists():
        pytest.skip("the real data set br35h is not here")
    report = audit(open_source("br35h", folder=REAL))
    assert report.scans == 3000
    assert report.random_accuracy == pytest.approx(0.98, abs=0.012)
    assert report.group_safe_accuracy == pytest.approx(0.765, abs=0.025)
    assert report.given_groups == 339
    assert 300 < report.found_groups < 450
    assert report.twins / report.scans == pytest.approx(0.94, abs=0.02)
    assert report.warnings[0].startswith("a random split overestimates accuracy")


@dataclass(frozen=True, eq=False)
class Known(Held):
    """The same, with columns that say more of the pictures."""

    columns: Mapping[str, object] = field(default_factory=dict)

    def index(self) -> pa.Table:
        return pa.table({"label": self.labels, **self.columns})


def looked_up(pictures: np.ndarray, labels: np.ndarray, part_of: np.ndarray) -> list[float]:
    """By part, the accuracy of the most similar picture of another part: the slow definition."""
    rows = pictures.reshape(len(pictures), -1).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    hits = []
    for query in range(len(rows)):
        cosines = [
            rows[query] @ rows[other] / (np.linalg.norm(rows[query]) * np.linalg.norm(rows[other]))
            if part_of[other] != part_of[query]
            else -np.inf
            for other in range(len(rows))
        ]
        hits.append(labels[int(np.argmax(cosines))] == labels[query])
    return [float(np.mean([hit for hit, part in zip(hits, part_of, strict=True) if part == p])) for p in set(part_of)]


@pytest.mark.parametrize("block", [1 << 22, 150])
def test_the_nearest_picture_is_never_looked_for_in_the_querys_own_part(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedplatform.data.leakage.BLOCK", block)
    originals = blobs(30, seed=8)
    pictures = np.concatenate([originals, np.uint8(np.clip(originals * 1.1, 0, 255))])
    labels = np.random.default_rng(0).integers(0, 2, 60)
    folds = np.arange(60) % 10  # a picture and its twin are in the same fold
    published = np.where(np.arange(60) % 5 == 4, "test", "train")
    report = audit(Known(pictures, labels, columns={"fold": folds, "split": published}))
    assert report.group_safe_accuracies == pytest.approx(looked_up(pictures, labels, folds // 2))
    by_split = looked_up(pictures, labels, (published == "test").astype(int))
    assert report.published_accuracy == pytest.approx(by_split[1])
    apart = audit(Known(pictures, labels, columns={"fold": np.arange(60) // 6}))
    assert apart.group_safe_accuracies == pytest.approx(looked_up(pictures, labels, np.arange(60) // 12))
    assert apart.published_accuracy is None
    assert apart.group_safe_accuracy == pytest.approx(np.mean(apart.group_safe_accuracies))


def test_a_twin_in_another_part_answers_and_one_in_the_same_part_does_not() -> None:
    originals = blobs(40, seed=9)
    labels = np.random.default_rng(1).integers(0, 2, 40)
    source = Known(
        np.concatenate([originals, originals]),
        np.concatenate([labels, labels]),
        columns={"fold": np.concatenate([np.arange(40) % 10, (np.arange(40) + 5) % 10])},
    )
    assert audit(source).group_safe_accuracies == (1.0,) * 5
    only_the_first = Known(source.pictures, np.tile(np.arange(40) == 0, 2).astype(int), columns=source.columns)
    assert audit(only_the_first).group_safe_accuracies == (1.0,) * 5
    together = Known(source.pictures, source.labels, columns={"group": np.tile(np.arange(40), 2)})
    report = audit(together)
    assert report.given_groups == 40
    assert report.random_accuracy > 0.8
    assert report.group_safe_accuracy < 0.75


def test_given_groups_are_never_searched_for_and_a_published_split_is_taken_at_its_word() -> None:
    originals = blobs(4, seed=10)
    pictures, labels = np.concatenate([originals, originals]), np.tile([0, 0, 1, 1], 2)

    def groups(**columns: object) -> list[int]:
        source = Known(pictures, labels, columns=columns)
        return groups_of(source, Index.of(source)).tolist()

    assert groups(group=[9, 9, 8, 8, 7, 7, 6, 6], fold=np.arange(8)) == [9, 9, 8, 8, 7, 7, 6, 6]
    assert groups(fold=np.arange(8)) == list(range(8))
    assert groups(split=["train", "test"] * 4) == list(range(8))
    assert groups() == [0, 1, 2, 3] * 2


def ticks(*places: int) -> np.ndarray:
    """A row of a unit vector: 1/2 at four of the pixels above the diagonal, where no flip meets another."""
    row = np.zeros((24, 24), np.float32)
    for place in places:
        row[place % 4, 5 + place // 4] = 0.5
    return row.reshape(-1)


def test_pictures_exactly_at_the_threshold_are_twins_and_a_chain_of_twins_is_a_group() -> None:
    # Neighbours in the chain share two of four pixels, a cosine of 1/2; its ends share none.
    chain = np.stack([ticks(0, 1, 2, 3), ticks(2, 3, 4, 5), ticks(4, 5, 6, 7), ticks(8, 9, 10, 11)])
    assert find_groups(chain, np.zeros(4, np.int64), 0.5).tolist() == [0, 0, 0, 1]
    assert len(np.unique(find_groups(chain, np.zeros(4, np.int64), 0.5001))) == 4
    assert find_groups(chain, np.array([1, 0, 1, 0]), 0.5).tolist() == [2, 0, 3, 1], "numbered from 0, class by class"
    ends = find_groups(chain[[0, 2, 1]], np.zeros(3, np.int64), 0.5)
    assert ends.tolist() == [0, 0, 0], "whichever of them comes first"


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_each_of_the_eight_flips_and_rotations_is_a_twin(turns: int, mirrored: bool) -> None:
    picture = blobs(1, seed=11)[0]
    twin = np.rot90(picture[:, ::-1] if mirrored else picture, turns)
    pair = np.stack([thumbnail(picture), thumbnail(twin)])
    assert find_groups(pair, np.zeros(2, np.int64)).tolist() == [0, 0]


def test_a_border_is_dark_up_to_thirty() -> None:
    picture = blobs(1, seed=12)[0]
    for brightness, cropped in ((30, True), (31, False)):
        framed = np.full((96, 80), brightness, np.uint8)
        framed[20:84, 8:72] = picture
        assert np.allclose(thumbnail(framed), thumbnail(picture), atol=1e-6) is cropped
    small = thumbnail(picture)
    shrunk = np.asarray(Image.fromarray(picture).resize((24, 24), Image.Resampling.BILINEAR), np.float64).reshape(-1)
    centred = shrunk - shrunk.mean()
    assert np.allclose(small, centred / np.linalg.norm(centred), atol=1e-6)
    assert small.shape == (576,)
    assert float(np.linalg.norm(small)) == pytest.approx(1)
    assert float(small.sum()) == pytest.approx(0, abs=1e-4)


def warned(pictures: np.ndarray, labels: np.ndarray, **columns: object) -> str:
    return " | ".join(audit(Known(pictures, labels, columns=columns)).warnings)


def test_a_class_ten_times_smaller_is_not_warned_of_and_a_smaller_one_is() -> None:
    pictures = blobs(112, seed=13)
    assert "macro-F1" not in warned(pictures[:110], np.arange(110) // 100)
    assert "class 'b' has 10 of 111 scans" in warned(pictures[:111], np.arange(111) // 101)


def test_twins_are_warned_of_beyond_a_twentieth_and_where_no_groups_are_given() -> None:
    originals = blobs(39, seed=14)
    labels = np.arange(40) % 2
    darker = np.uint8(originals * 0.9)
    two = np.concatenate([originals, darker[:1]])
    four = np.concatenate([originals[:38], darker[:2]])
    assert "near-identical twin" not in warned(two, labels)
    assert "4 of 40 scans have a near-identical twin" in warned(four, labels)
    assert "near-identical twin" not in warned(four, labels, group=np.arange(40))


@pytest.mark.parametrize(("others", "most"), [(60, 50), (420, 60)])
def test_a_group_is_too_large_beyond_fifty_and_a_quarter_of_a_class(others: int, most: int) -> None:
    one, strangers = blobs(1, seed=15), blobs(others, seed=16)
    for size in (most, most + 1):
        pictures = np.concatenate([np.repeat(one, size, axis=0), strangers])
        labels = np.concatenate([np.zeros(size, np.int64), np.ones(others, np.int64)])
        report = audit(Known(pictures, labels), max_queries=50)
        assert (report.largest_group, report.twins, report.found_groups) == (size, size, others + 1)
        assert ("the largest group found" in " | ".join(report.warnings)) is (size > most)
        assert report.majority == pytest.approx(others / (others + size))
        assert (report.duplicates, report.conflicting) == (size - 1, 0)


def test_every_copy_of_another_class_conflicts_and_only_the_later_ones_repeat() -> None:
    one, two, three = blobs(3, seed=17)
    pictures = np.concatenate([np.stack([one, one, one, two, two, three]), blobs(30, seed=18)])
    labels = np.concatenate([[0, 0, 1, 1, 1, 0], np.arange(30) % 2])
    report = audit(Known(pictures, labels))
    assert (report.duplicates, report.conflicting) == (3, 3)


def test_a_sample_is_of_scans_and_groups_that_are_known_stay_together_in_it() -> None:
    originals = blobs(60, seed=19)
    labels = np.random.default_rng(2).integers(0, 2, 60)
    columns = {"group": np.tile(np.arange(60), 2) * 3, "fold": np.tile(np.arange(60) % 10, 2)}
    source = Known(np.concatenate([originals, originals]), np.tile(labels, 2), columns=columns)
    report = audit(source, max_scans=80)
    assert (report.scans, report.searched, report.queries) == (120, 80, 80)
    assert report.duplicates == 60, "copies are looked for among all"
    assert report.group_safe_accuracy < 0.75
    assert audit(source, max_scans=120).searched == 120
    assert not [words for words in audit(source, max_scans=120).warnings if "in a sample" in words]
    assert audit(source, max_queries=7).queries == 7
    assert audit(source, seed=0) == audit(source, seed=0)


def test_a_published_split_without_a_test_set_has_no_accuracy() -> None:
    source = Known(blobs(40, seed=20), np.arange(40) % 2, columns={"split": ["train"] * 30 + ["validation"] * 10})
    assert audit(source).published_accuracy is None


def test_pictures_that_look_alike_are_grouped_more_strictly_and_never_across_sites() -> None:
    generator = np.random.default_rng(0)
    common = generator.normal(size=24 * 24)
    raw = common + 0.22 * generator.normal(size=(400, 24 * 24))  # skin: every pair has a cosine of about .95
    raw[1] = raw[0] + 0.01 * generator.normal(size=24 * 24)
    thumbnails = (raw - raw.mean(axis=1, keepdims=True)).astype(np.float32)
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True)
    labels = np.zeros(400, np.int64)
    labels[200:] = 1
    assert len(np.unique(find_groups(thumbnails, labels))) == 2
    one_site = Index(("a", "b"), labels)
    assert len(np.unique(search_groups(thumbnails, one_site))) == 399
    two_sites = Index(("a", "b"), labels, sites=np.array(["x", "y"] * 200))
    assert len(np.unique(search_groups(thumbnails, two_sites))) == 400
    assert share_on_both_sides(thumbnails[:1], thumbnails[1:]) == 1
    assert share_on_both_sides(thumbnails[:2], thumbnails[2:]) == 0


def test_groups_that_share_a_scan_become_one_and_folds_of_the_old_groups_go() -> None:
    seen = blobs(8, seed=9)
    pictures = np.concatenate([seen, seen[0:1, :, ::-1], np.rot90(seen[1:2], axes=(1, 2))])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0, 1])  # the last one is a copy, too, but of the other class
    groups = np.array([10, 11, 12, 12, 13, 14, 15, 15, 12, 15])
    source = JoinedGroups(Known(pictures, labels, columns={"group": groups, "fold": np.arange(10)}), at_least=0.95)
    index = Index.of(source)
    assert index.folds is None
    assert index.groups is not None
    joined = [set(np.flatnonzero(index.groups == group)) for group in np.unique(index.groups)]
    assert joined == [{0, 2, 3, 8}, {1}, {4}, {5}, {6, 7, 9}], "10 and 12 are one: scan 8 is scan 0, mirrored"


def test_no_test_scan_of_br35h_has_a_copy_in_training() -> None:
    if not (REAL / "br35h_128.parquet").exists():
        pytest.skip("the real data set br35h is not here")
    source = open_source("br35h", folder=REAL)
    index, thumbnails = Index.of(source), thumbnails_of(source)
    for seed in range(3):
        roles = assign_roles(index, split="group_safe", seed=seed, root_size=0)
        for label in (0, 1):
            of_class = index.labels == label
            test, train = thumbnails[of_class & (roles == "test")], thumbnails[of_class & (roles == "train")]
            assert share_on_both_sides(test, train, threshold=0.95) == 0
