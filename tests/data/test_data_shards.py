from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedplatform.data.error import DataError
from fedplatform.data.index import Index
from fedplatform.data.partition import BySite, Dirichlet, Iid
from fedplatform.data.pictures import batches
from fedplatform.data.shards import Manifest, Shard, partition
from fedplatform.data.sources import open_source
from fedplatform.data.splits import LEFT_OUT, Role, assign_roles, strata_of, thin

REAL = Path(__file__).parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Numbered:
    """400 grey pictures at four sites in groups of four, each of the brightness of its row modulo 251."""

    announced: int = 400
    given: int = 400
    broken: int = -1
    classes: tuple[str, ...] = ("a", "b")
    channels: int = 1

    def index(self) -> pa.Table:
        rows = np.arange(self.announced)
        sites = [f"site-{row // 8 % 4}" for row in rows]
        return pa.table({"label": rows // 4 % 2, "group": rows // 4, "site": sites})

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        return batches(self._pictures(), size=size, channels=channels)

    def _pictures(self) -> Iterator[np.ndarray]:
        for row in range(self.given):
            if row == self.broken:
                raise DataError(f"row {row} is broken")
            yield np.full((10, 10), row % 251, np.uint8)


def cut(source: Numbered, folder: Path, **changes: object) -> Manifest:
    settings = {"how": Dirichlet(0.5), "num_hospitals": 4, "seed": 0, "size": 6, "channels": 1, "root_size": 24}
    return partition(source, name="numbered", folder=folder, **(settings | changes))


def shards_of(folder: Path) -> dict[str, Shard]:
    return {path.stem: Shard.open(path) for path in sorted(folder.glob("*.parquet"))}


@pytest.mark.parametrize("channels", [1, 3])
def test_every_row_lands_once_with_its_own_picture_and_label(tmp_path: Path, channels: int) -> None:
    cut(Numbered(), tmp_path / "shards", channels=channels)
    seen: list[int] = []
    group_of: dict[int, set[tuple[str, str]]] = {}
    for name, shard in shards_of(tmp_path / "shards").items():
        assert (shard.classes, shard.channels, shard.size) == (("a", "b"), channels, 6)
        for role in Role:
            rows, images = shard.rows(role), shard.images(role)
            assert images.shape == (len(rows), channels, 6, 6)
            assert images.dtype == np.uint8
            assert (images == (rows % 251)[:, None, None, None]).all()
            assert (shard.labels(role) == rows // 4 % 2).all()
            for group in shard.groups(role):
                group_of.setdefault(int(group), set()).add((name, role))
            seen += rows.tolist()
    assert sorted(seen) == list(range(400))
    assert all(len(places) == 1 for places in group_of.values())


def test_the_server_has_only_root_scans_and_a_hospital_none(tmp_path: Path) -> None:
    cut(Numbered(), tmp_path / "shards")
    for name, shard in shards_of(tmp_path / "shards").items():
        others = [role for role in Role if (role is Role.ROOT) != (name == "root")]
        assert sum(len(shard.labels(role)) for role in others) == 0
    assert np.bincount(Shard.open(tmp_path / "shards" / "root.parquet").labels(Role.ROOT)).min() >= 8


def test_the_manifest_counts_what_lies_in_the_shards_and_survives_the_disk(tmp_path: Path) -> None:
    manifest = cut(Numbered(), tmp_path / "shards", how=BySite())
    assert Manifest.load(tmp_path / "shards") == manifest
    assert manifest.settings.partition == "BySite()"
    shards = shards_of(tmp_path / "shards")
    assert manifest.root is not None
    for summary in (*manifest.hospitals, manifest.root):
        shard = shards[summary.file.removesuffix(".parquet")]
        for role in Role:
            assert summary.counts[role] == tuple(np.bincount(shard.labels(role), minlength=2))


def test_the_digest_follows_the_contents_and_nothing_else(tmp_path: Path) -> None:
    first = cut(Numbered(), tmp_path / "1")
    assert cut(Numbered(), tmp_path / "2").digest == first.digest
    assert cut(Numbered(), tmp_path / "3", seed=1).digest != first.digest
    assert cut(Numbered(), tmp_path / "4", size=7).digest != first.digest


def test_progress_is_told_up_to_the_last_scan(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    cut(Numbered(), tmp_path / "shards", progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (400, 400)


class OnDemand(Numbered):
    """Gives chosen scans alone, and not all of them."""

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        raise AssertionError("nobody needs all scans")

    def images_at(self, rows: np.ndarray, *, size: int, channels: int) -> Iterator[np.ndarray]:
        yield np.concatenate(list(Numbered.images(self, size=size, channels=channels)))[rows]


def test_a_source_that_can_give_some_scans_is_asked_for_those_alone(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    whole = cut(Numbered(), tmp_path / "whole", scans=200)
    some = cut(OnDemand(), tmp_path / "some", scans=200, progress=lambda done, total: told.append((done, total)))
    assert some.digest == whole.digest
    kept = sum(sum(map(sum, shard.counts.values())) for shard in (*some.hospitals, *filter(None, [some.root])))
    assert told == [(kept, kept)]
    assert kept < 400


def test_a_corrupt_picture_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 300 is broken"):
        cut(Numbered(broken=300), tmp_path / "new" / "shards")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("given", "says"), [(399, "gave 399 pictures for the 400 rows"), (401, "more pictures than")])
def test_a_source_that_breaks_its_own_index_is_refused(tmp_path: Path, given: int, says: str) -> None:
    with pytest.raises(DataError, match=says):
        cut(Numbered(given=given), tmp_path / "shards")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_never_written_to(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exists already"):
        cut(Numbered(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/shards: cannot be written \(File exists\)"):
        cut(Numbered(), tmp_path / "file" / "shards")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(DataError, match="cannot be written"):
            cut(Numbered(), tmp_path / "shards", size=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"x\.parquet: not a shard"):
        Shard.open(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no folder of shards"):
        Manifest.load(tmp_path)


# Runs in a process of its own, because the peak of a process never falls again. The small file comes first, so that
# only what grows with the number of scans is measured.
MEASURE = """
import resource, sys
from pathlib import Path
from fedplatform.data.partition import Iid
from fedplatform.data.shards import partition
from fedplatform.data.sources import open_source

for file in sys.argv[1:]:
    source, folder = open_source(file), Path(file + ".shards")
    partition(source, name="", how=Iid(), num_hospitals=4, seed=0, size=96, channels=3, folder=folder)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_large_file_is_partitioned_without_being_held_in_memory(tmp_path: Path) -> None:
    small, large = 1_800, 5_000
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "PNG")
    files = []
    for rows in (small, large):
        table = pa.table({"image": [buffer.getvalue()] * rows, "label": np.arange(rows) % 2, "group": np.arange(rows)})
        files.append(str(tmp_path / f"{rows}.parquet"))
        pq.write_table(table, files[-1], row_group_size=rows, use_dictionary=False, compression="none")
    output = subprocess.run([sys.executable, "-c", MEASURE, *files], capture_output=True, text=True, check=True)
    before, after = (int(line) / 1024 for line in output.stdout.split())
    more_pixels = (large - small) * 96 * 96 * 3 / 2**20
    assert more_pixels > 80
    assert after - before < 30


def test_br35h_is_cut_into_ten_hospitals_without_cutting_a_group(tmp_path: Path) -> None:
    if not (REAL / "br35h_128.parquet").exists():
        pytest.skip("the real data set br35h is not here")
    source = open_source("br35h", folder=REAL)
    honest = range(3, 10)
    folder = tmp_path / "shards"
    manifest = partition(
        source, name="br35h", how=Iid(), num_hospitals=10, seed=0, size=32, channels=1, folder=folder, graders=honest
    )
    assert len(manifest.hospitals) == 10
    places: dict[int, set[str]] = {}
    for name, shard in shards_of(folder).items():
        for role in Role:
            for group in shard.groups(role):
                places.setdefault(int(group), set()).add(f"{name} {role}")
    assert len(places) == 339
    assert all(len(place) == 1 for place in places.values())
    tests = [sum(summary.counts[Role.TEST]) for summary in manifest.hospitals]
    assert tests[:3] == [0, 0, 0]
    assert sum(tests) == pytest.approx(600, abs=30)


def grouped(*, groups: int, largest: int, seed: int, published: bool = False) -> Index:
    """Groups of 1 to ``largest`` scans of one class each, in mixed order, at two sites or with a published test set."""
    generator = np.random.default_rng(seed)
    of_scan = generator.permutation(np.repeat(np.arange(groups), generator.integers(1, largest + 1, groups)))
    sites = np.where(of_scan // 2 % 2, "north", "south")
    splits = np.where(of_scan % 7 < 2, "test", "train")
    return Index(
        ("a", "b"),
        of_scan % 2,
        groups=of_scan,
        sites=None if published else sites,
        splits=splits if published else None,
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(80, 150), st.integers(1, 6), st.integers(0, 999), st.booleans(), st.floats(0.4, 0.9))
def test_thinning_leaves_out_whole_groups_and_keeps_the_roles_in_proportion(
    groups: int, largest: int, seed: int, published: bool, share: float
) -> None:
    index = grouped(groups=groups, largest=largest, seed=seed, published=published)
    roles = assign_roles(index, seed=seed, root_size=8)
    scans = int(share * len(index))
    thinned = thin(index, roles, scans=scans, seed=seed)
    kept = thinned != LEFT_OUT
    assert (thinned[kept] == roles[kept]).all()
    assert ((thinned == Role.ROOT) == (roles == Role.ROOT)).all()
    assert scans - 4 * largest <= kept.sum() <= scans
    assert index.groups is not None
    assert not set(index.groups[kept]) & set(index.groups[~kept])
    root = int((roles == Role.ROOT).sum())
    wanted = (scans - root) / (len(index) - root)
    strata, _ = strata_of(index)
    for stratum in np.unique(strata):
        before, after = (int(((r == Role.TEST) & (strata == stratum)).sum()) for r in (roles, thinned))
        assert wanted * before <= after < wanted * before + largest
    assert (thinned == thin(index, roles, scans=scans, seed=seed)).all()


def test_thinning_keeps_the_classes_of_the_training_scans_as_they_were() -> None:
    index = grouped(groups=3000, largest=3, seed=0)
    roles = assign_roles(index, seed=0, root_size=100)
    before, after = (
        np.bincount(strata_of(index)[0][r == Role.TRAIN]) for r in (roles, thin(index, roles, scans=1500, seed=0))
    )
    assert after / after.sum() == pytest.approx(before / before.sum(), abs=0.01)


def test_another_seed_leaves_out_other_scans() -> None:
    index = grouped(groups=200, largest=3, seed=0)
    roles = assign_roles(index, seed=0, root_size=8)
    assert (thin(index, roles, scans=150, seed=0) != thin(index, roles, scans=150, seed=1)).any()


def test_a_random_split_is_thinned_scan_by_scan() -> None:
    index = grouped(groups=60, largest=20, seed=0)
    roles = assign_roles(index, split="random", seed=0, root_size=8)
    assert (thin(index, roles, scans=100, seed=0, split="random") != LEFT_OUT).sum() == 100


def test_scans_too_few_for_every_class_in_every_role_are_refused() -> None:
    index = grouped(groups=100, largest=4, seed=0)
    roles = assign_roles(index, seed=0, root_size=8)
    with pytest.raises(DataError, match=r"12 scans are too few: class '[ab]' is left without train scans"):
        thin(index, roles, scans=12, seed=0)


def test_scans_that_are_left_out_are_written_to_no_shard(tmp_path: Path) -> None:
    manifest = cut(Numbered(), tmp_path / "shards", scans=200)
    assert manifest.settings.scans == 200
    seen: list[int] = []
    whole_groups: set[int] = set()
    for shard in shards_of(tmp_path / "shards").values():
        for role in Role:
            rows = shard.rows(role)
            assert (shard.images(role) == (rows % 251)[:, None, None, None]).all()
            seen += rows.tolist()
            whole_groups |= set(shard.groups(role).tolist())
    assert 180 <= len(seen) == len(set(seen)) <= 200
    assert len(seen) == 4 * len(whole_groups)


def test_more_scans_than_there_are_change_nothing(tmp_path: Path) -> None:
    assert cut(Numbered(), tmp_path / "1", scans=401).digest == cut(Numbered(), tmp_path / "2").digest


def test_mnist_keeps_its_published_test_set_in_proportion(tmp_path: Path) -> None:
    if not (REAL / "mnist.npz").exists():
        pytest.skip("the real data set mnist is not here")
    manifest = partition(
        open_source("mnist", folder=REAL), name="mnist", how=Iid(), num_hospitals=10, seed=0, size=28, channels=1,
        folder=tmp_path / "shards", scans=3500,
    )  # fmt: skip
    assert manifest.root is not None
    counts = {role: np.sum([shard.counts[role] for shard in manifest.hospitals], axis=0) for role in Role}
    assert sum(int(count.sum()) for count in counts.values()) + sum(manifest.root.counts[Role.ROOT]) <= 3500
    assert sum(manifest.root.counts[Role.ROOT]) == 100
    assert 486 <= counts[Role.TEST].sum() <= 500
    for shard in shards_of(tmp_path / "shards").values():
        assert (shard.rows(Role.TEST) >= 60_000).all()
        assert (shard.rows(Role.TRAIN) < 60_000).all()
    assert counts[Role.TRAIN].min() > 200


@pytest.mark.parametrize("waiting", [1, 36 * 5, 36 * 5 * 3, 1 << 30])
def test_a_shard_is_written_in_pieces_of_as_many_rows_as_may_wait(
    tmp_path: Path, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedplatform.data.shards.WAITING_BYTES", waiting)  # of five open shards, 36 bytes a picture
    monkeypatch.setattr("fedplatform.data.shards.MOST_WAITING_ROWS", 7)
    manifest = cut(Numbered(), tmp_path / "shards")
    rows = {1: 1, 36 * 5: 1, 36 * 5 * 3: 3, 1 << 30: 7}[waiting]
    for path in sorted((tmp_path / "shards").glob("*.parquet")):
        file = pq.ParquetFile(path)
        pieces = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        assert pieces[:-1] == [rows] * (len(pieces) - 1)
        assert 1 <= pieces[-1] <= rows
    monkeypatch.undo()
    assert cut(Numbered(), tmp_path / "again").digest == manifest.digest, "in whatever pieces it is written"


def test_as_many_scans_as_there_are_leave_every_scan_its_role(tmp_path: Path) -> None:
    assert cut(Numbered(), tmp_path / "1", scans=400).digest == cut(Numbered(), tmp_path / "2").digest


def test_a_digest_is_of_every_pixel_label_role_and_row(tmp_path: Path) -> None:
    manifest = cut(Numbered(), tmp_path / "shards")
    assert manifest.root is not None
    summaries = [*manifest.hospitals, manifest.root]
    for summary in summaries:
        shard = Shard.open(tmp_path / "shards" / summary.file)
        lines = []
        for role in Role:
            for row, label, picture in zip(shard.rows(role), shard.labels(role), shard.images(role), strict=True):
                lines.append((int(row), picture.tobytes() + f"{label} {role} {row}\n".encode()))
        assert summary.digest == sha256(b"".join(line for _, line in sorted(lines))).hexdigest()
    whole = "".join(summary.file + summary.digest for summary in summaries)
    assert manifest.digest == sha256(whole.encode()).hexdigest()
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text())["digest"] == manifest.digest


def test_without_a_root_set_the_server_has_no_file(tmp_path: Path) -> None:
    manifest = cut(Numbered(), tmp_path / "shards", root_size=0)
    assert manifest.root is None
    assert Manifest.load(tmp_path / "shards") == manifest
    names = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert names == [*(f"hospital-{number:02d}.parquet" for number in range(4)), "manifest.json"]
    assert (tmp_path / "shards").stat().st_mode & 0o777 == 0o755
