"""Any number of findings a scan: how they are read, split, dealt and kept, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import FINDINGS, findings, png, scans, write_chest

from fedplatform.attacks.poisoning.data_poisoning import Backdoor, LabelFlip
from fedplatform.core.tasks import kinds_of
from fedplatform.data.arrays import ArraySource
from fedplatform.data.error import DataError
from fedplatform.data.index import Index, list_column
from fedplatform.data.leakage import audit
from fedplatform.data.memory import from_arrays
from fedplatform.data.named_classes import NamedClasses
from fedplatform.data.parquet import ParquetSource
from fedplatform.data.partition import PARTITIONS
from fedplatform.data.shards import Manifest, Shard, partition
from fedplatform.data.source import Source
from fedplatform.data.sources import open_source
from fedplatform.data.splits import Role, assign_roles, thin

LABELS = findings(40)


def images_of(source: Source) -> np.ndarray:
    return np.concatenate(list(source.images(size=32, channels=1)))[:, 0]


# Reading


def test_chestmnist_as_it_is_published_is_read_with_its_split(tmp_path: Path) -> None:
    source = open_source(str(write_chest(tmp_path / "chest.npz", LABELS)))
    index = Index.of(source)
    assert source.classes == FINDINGS
    assert index.is_multilabel
    assert index.labels.tolist() == LABELS.tolist()
    assert index.splits is not None
    assert [int((index.splits == part).sum()) for part in ("train", "validation", "test")] == [28, 4, 8]
    assert index.class_counts.tolist() == LABELS.sum(axis=0).tolist()
    assert (images_of(source) == scans(LABELS)).all()


def test_findings_of_an_npz_that_has_no_names_are_numbered(tmp_path: Path) -> None:
    assert ArraySource(write_chest(tmp_path / "chest.npz", LABELS, names=False)).classes == ("0", "1", "2")


def write_rows(file: Path, metadata: dict[str, str] | None = None, **columns: object) -> Path:
    count = len(next(iter(columns.values())))  # type: ignore[call-overload]
    pictures = [png(picture) for picture in scans(findings(count))]
    pq.write_table(pa.table({"image": pictures, **columns}).replace_schema_metadata(metadata), file)
    return file


def hub(label: object) -> dict[str, str]:
    """Metadata as Hugging Face's library writes them."""
    return {"huggingface": json.dumps({"info": {"features": {"label": label}}})}


def columns_of(labels: np.ndarray) -> dict[str, list[int]]:
    return {f"label_{name}": labels[:, number].tolist() for number, name in enumerate(FINDINGS)}


@pytest.mark.parametrize(
    "write",
    [
        lambda file: write_rows(file, {"classes": ",".join(FINDINGS)}, label=LABELS.tolist()),
        lambda file: write_rows(file, {"classes": ",".join(FINDINGS)}, label=list_column(LABELS)),
        lambda file: write_rows(file, {"classes": ",".join(FINDINGS)}, label=LABELS.astype(bool).tolist()),
        lambda file: write_rows(file, hub({"feature": {"names": FINDINGS}}), label=LABELS.tolist()),
        lambda file: write_rows(file, hub([{"names": FINDINGS}]), label=LABELS.tolist()),
        lambda file: write_rows(file, **columns_of(LABELS)),
        lambda file: write_rows(
            file, **{name: [bool(v) for v in values] for name, values in columns_of(LABELS).items()}
        ),
    ],
    ids=[
        "lists",
        "fixed lists",
        "lists of booleans",
        "names of the hub",
        "names of the hub in a list",
        "columns",
        "columns of booleans",
    ],
)
def test_a_parquet_file_says_findings_in_lists_or_in_columns(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    source = ParquetSource(write(tmp_path / "chest.parquet"))
    index = Index.of(source)
    assert source.classes == FINDINGS
    assert index.labels.tolist() == LABELS.tolist()
    assert (images_of(source) == scans(LABELS)).all()


def test_findings_of_a_parquet_file_without_names_are_numbered_and_one_column_is_one_finding(tmp_path: Path) -> None:
    listed = ParquetSource(write_rows(tmp_path / "listed.parquet", label=LABELS.tolist()))
    assert listed.classes == ("0", "1", "2")
    one = Index.of(ParquetSource(write_rows(tmp_path / "one.parquet", label_disc=LABELS[:, 0].tolist())))
    assert one.labels.shape == (40, 1)
    assert one.classes == ("disc",)


def test_a_column_label_goes_before_columns_that_begin_with_its_name(tmp_path: Path) -> None:
    words = ["a", "b"] * 4
    source = ParquetSource(write_rows(tmp_path / "words.parquet", label=words, label_source=words))
    assert source.classes == ("a", "b")
    assert not Index.of(source).is_multilabel


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"label": [[0, 1], [1], [0, 1]]}, "says 0 or 1 of each of 2 findings, got lists of 1, 2"),
        ({"label": [[0, 1], [1, 2], [0, 1]]}, "says 0 or 1 of each finding, got 0 to 2"),
        ({"label": [[0.5, 1.0], [1.0, 0.0]]}, "says 0 or 1 of each finding, got list<"),
        ({"label": [[0, 1], [None, 1]]}, "says 0 or 1 of each finding, got empty places"),
        ({"label": [[0, 1], None]}, "column 'label' is empty in 1 of 2 rows"),
        ({"label_a": [0, 1], "label_b": [0, 3]}, "says 0 or 1 of each finding, got 0 to 3"),
        ({"label_a": [0, 1], "label_b": [0, None]}, "column 'label_b' is empty in 1 of 2 rows"),
        ({"label_a": [0, 1], "label_b": [0.0, 1.0]}, "column 'label_b' must hold 0 or 1, got double"),
        ({"label_a": [0, 1], "label_b": ["no", "yes"]}, "column 'label_b' must hold 0 or 1, got string"),
        ({"finding": [0, 1]}, "needs a column 'label', got image, finding"),
    ],
)
def test_a_parquet_file_whose_findings_are_none_is_refused_in_one_line(
    tmp_path: Path, columns: dict[str, object], said: str
) -> None:
    with pytest.raises(DataError) as refused:
        Index.of(ParquetSource(write_rows(tmp_path / "bad.parquet", **columns)))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_labels": LABELS[:28] * 2}, "train_labels must hold 0 or 1 of each finding, got 0 to 2"),
        ({"train_labels": LABELS[:28] * 0.5}, r"a row of 0 and 1 a picture"),
        ({"val_labels": LABELS[:5]}, r"val_labels must hold one whole number a picture \(4\), got int64 \(5, 3\)"),
        ({"test_labels": LABELS[:8, :2]}, r"labels of the same findings, got train \(28, 3\), .*test \(8, 2\)"),
        ({"test_labels": LABELS[:8, 0]}, r"labels of the same findings, got train \(28, 3\), .*test \(8,\)"),
        ({"label_names": np.array(["a", "b"])}, r"label_names must hold 3 different names, got <U1 \(2,\)"),
        ({"label_names": np.array(["a", "b", "b"])}, "label_names must hold 3 different names"),
    ],
)
def test_an_npz_whose_findings_are_none_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, np.ndarray], said: str
) -> None:
    with np.load(write_chest(tmp_path / "good.npz", LABELS)) as good:
        np.savez(tmp_path / "bad.npz", **{**good, **changes})
    with pytest.raises(DataError, match=said) as refused:
        Index.of(ArraySource(tmp_path / "bad.npz"))
    assert "\n" not in str(refused.value)


def test_scans_in_memory_may_have_findings() -> None:
    mine = from_arrays(scans(LABELS), LABELS, classes=FINDINGS)
    assert mine.is_multilabel
    assert Index.of(mine).labels.tolist() == LABELS.tolist()
    for labels in (LABELS[:39], LABELS * 2, LABELS[:, :1]):
        with pytest.raises(DataError, match=r"labels"):
            from_arrays(scans(LABELS), labels)
    with pytest.raises(DataError, match="3 findings need as many classes, got 2"):
        from_arrays(scans(LABELS), LABELS, classes=FINDINGS[:2])


def test_a_hospital_names_its_findings_in_any_order_and_must_say_each(tmp_path: Path) -> None:
    own = ParquetSource(write_rows(tmp_path / "own.parquet", **columns_of(LABELS)))
    other = ("hole", "disc", "bar")
    assert Index.of(NamedClasses(own, other)).labels.tolist() == LABELS[:, [2, 0, 1]].tolist()
    with pytest.raises(DataError, match="do not say which scans have nodule"):
        Index.of(NamedClasses(own, (*FINDINGS, "nodule")))


# Splits and partitions


def index_of(labels: np.ndarray, *, groups: np.ndarray | None = None, sites: np.ndarray | None = None) -> Index:
    return Index(FINDINGS, labels, groups=groups, sites=sites)


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_a_split_keeps_patients_whole_and_gives_every_role_its_share_of_a_rare_finding(seed: int) -> None:
    labels = findings(600, seed=seed)
    groups = np.arange(600) // 3
    roles = assign_roles(index_of(labels, groups=groups), seed=seed, root_size=30)
    for group in np.unique(groups):
        assert len(set(roles[groups == group])) == 1
    rare = labels[:, 2] == 1
    for role, share in ((Role.TEST, 0.2), (Role.VALIDATION, 0.1)):  # as near as patients of three scans allow
        assert 0.5 * share < (roles[rare] == role).mean() < 2 * share
    assert (roles[rare] == Role.ROOT).any()


def test_a_finding_of_one_patient_stops_no_split_but_too_few_patients_do() -> None:
    labels = findings(90)
    labels[:, 2] = 0
    labels[0, 2] = 1
    roles = assign_roles(index_of(labels, groups=np.arange(90) // 3), seed=0, root_size=0)
    assert roles[0] == Role.TRAIN, "what is there once is for training"
    with pytest.raises(
        DataError, match="the data set has 2 groups, too few for a part in each of train, test, validation"
    ):
        assign_roles(index_of(labels, groups=np.arange(90) // 45), seed=0, root_size=0)


def test_fewer_scans_are_thinned_in_proportion() -> None:
    index = index_of(findings(600), groups=np.arange(600) // 3)
    roles = assign_roles(index, seed=0, root_size=0)
    fewer = thin(index, roles, scans=150, seed=0)
    kept = fewer != ""
    assert kept.sum() <= 150
    assert index.labels[kept].mean(axis=0) == pytest.approx(index.labels.mean(axis=0), abs=0.08)


@pytest.mark.parametrize("how", ["iid", "dirichlet", "label_skew", "quantity_skew"])
def test_every_partition_deals_scans_with_findings_and_keeps_patients_whole(tmp_path: Path, how: str) -> None:
    labels = findings(240)
    source = from_arrays(scans(labels), labels, classes=FINDINGS, groups=np.arange(240) // 2)
    manifest = partition(
        source,
        name="shapes",
        how=PARTITIONS[how](),
        num_hospitals=3,
        seed=0,
        size=16,
        channels=1,
        folder=tmp_path / "shards",
        root_size=20,
        task="multilabel",
    )
    assert Manifest.load(tmp_path / "shards") == manifest
    assert manifest.counted == (*FINDINGS, "no finding")
    seen = []
    for summary in (*manifest.hospitals, manifest.root):
        assert summary is not None
        shard = Shard.open(tmp_path / "shards" / summary.file)
        assert shard.is_multilabel
        for role in Role:
            rows, found = shard.rows(role), shard.labels(role)
            assert found.shape == (len(rows), 3)
            assert found.tolist() == labels[rows].tolist()
            assert summary.counts[role][:3] == tuple(found.sum(axis=0))
            assert summary.counts[role][3] == int((found.sum(axis=1) == 0).sum())
            seen += [(row, summary.file) for row in rows.tolist()]
    assert sorted(row for row, _ in seen) == list(range(240))
    of_patient: dict[int, set[str]] = {}
    for row, file in seen:
        of_patient.setdefault(row // 2, set()).add(file)
    assert all(len(files) == 1 for files in of_patient.values())


def test_a_skewed_partition_gives_a_hospital_more_of_its_main_finding(tmp_path: Path) -> None:
    labels = findings(400)
    source = from_arrays(scans(labels), labels, groups=np.arange(400))
    partition(
        source, name="shapes", how=PARTITIONS["label_skew"](0.9), num_hospitals=4, seed=0, size=16, channels=1,
        folder=tmp_path / "shards", root_size=0,
    )  # fmt: skip
    mixes = []
    for number in range(4):
        shard = Shard.open(tmp_path / "shards" / f"hospital-{number:02d}.parquet")
        dealt = labels[shard.rows(Role.TRAIN)]
        mixes.append(dealt.mean(axis=0))
    assert np.argmax(mixes, axis=0).tolist() == [0, 1, 2]
    assert (labels[:, 2] == 1).sum() > 0


def test_data_of_another_task_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    def dealt(labels: np.ndarray, task: str) -> None:
        partition(
            from_arrays(scans(LABELS), labels), name="shapes", how=PARTITIONS["iid"](), num_hospitals=2, seed=0,
            size=16, channels=1, folder=tmp_path / "shards", task=task,
        )  # fmt: skip

    with pytest.raises(DataError, match="any number of findings, and task multiclass takes one class a scan"):
        dealt(LABELS, "multiclass")
    with pytest.raises(DataError, match="task multilabel takes a column of 0 and 1 for each finding"):
        dealt(LABELS[:, 0], "multilabel")
    assert not list(tmp_path.iterdir())


def test_an_audit_of_findings_counts_each_and_looks_up_the_rarest() -> None:
    labels = findings(60)
    report = audit(from_arrays(scans(labels), labels, classes=FINDINGS))
    assert report.class_counts == tuple(labels.sum(axis=0))
    assert report.majority == pytest.approx(np.bincount(kinds_of(labels)).max() / 60)
    twice = np.concatenate([labels, 1 - labels])
    copies = audit(from_arrays(np.concatenate([scans(labels)] * 2), twice, classes=FINDINGS))
    assert (copies.duplicates, copies.conflicting) == (60, 120)


# Poisoned findings


@given(st.floats(0.05, 1.0), st.integers(0, 2**31))
def test_label_flipping_turns_every_finding_of_the_scans_that_it_takes(fraction: float, seed: int) -> None:
    images = np.zeros((40, 1, 8, 8), np.uint8)
    same, poisoned = LabelFlip(fraction).poison(images, LABELS, num_classes=3, generator=np.random.default_rng(seed))
    turned = (poisoned + LABELS == 1).all(axis=1)
    assert turned.sum() == round(fraction * 40)
    assert (poisoned[~turned] == LABELS[~turned]).all()
    assert (same == images).all()


def test_a_backdoor_adds_its_finding_to_stamped_scans_that_had_it_not() -> None:
    images = np.zeros((40, 1, 16, 16), np.uint8)
    stamped, poisoned = Backdoor(target=2, fraction=0.5).poison(
        images, LABELS, num_classes=3, generator=np.random.default_rng(0)
    )
    changed = stamped.reshape(40, -1).any(axis=1)
    without = LABELS[:, 2] == 0
    assert changed.sum() == round(0.5 * without.sum())
    assert not changed[~without].any()
    assert (poisoned[changed, 2] == 1).all()
    assert (poisoned[:, :2] == LABELS[:, :2]).all()
    with pytest.raises(ValueError, match="Backdoor needs 0 <= target < 3 classes, got target=3"):
        Backdoor(target=3).poison(images, LABELS, num_classes=3, generator=np.random.default_rng(0))
