"""Pictures on the disk are the same pictures: in any order of reading, in training, and in little memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedplatform.data.error import DataError
from fedplatform.data.memory import from_arrays
from fedplatform.data.partition import Iid
from fedplatform.data.shards import Shard, partition
from fedplatform.data.splits import Role
from fedplatform.data.stored_pixels import StoredPixels
from fedplatform.federated.hospital import Hospital
from fedplatform.learning.models import SmallCnn
from fedplatform.learning.training import FedBNP, LocalTraining, Trainer

PICTURES = np.random.default_rng(0).integers(0, 256, (23, 3, 4, 4), np.uint8)


def stored(pictures: np.ndarray, folder: Path) -> StoredPixels:
    return StoredPixels((picture.tobytes() for picture in pictures), pictures.shape, folder=folder)


@given(st.lists(st.integers(-23, 22)), st.slices(23), st.lists(st.booleans(), min_size=23, max_size=23))
def test_rows_slices_and_masks_give_what_an_array_gives(rows: list[int], part: slice, mask: list[bool]) -> None:
    kept = stored(PICTURES, Path("nowhere"))
    numbers = np.array(rows, np.int64)
    np.testing.assert_array_equal(kept[numbers], PICTURES[numbers])
    np.testing.assert_array_equal(kept[part], PICTURES[part])
    np.testing.assert_array_equal(kept[np.array(mask)], PICTURES[np.array(mask)])


def test_the_whole_is_the_array_and_no_file_is_left_in_the_folder(tmp_path: Path) -> None:
    kept = stored(PICTURES, tmp_path)
    assert (len(kept), kept.shape, kept.dtype) == (23, PICTURES.shape, np.uint8)
    np.testing.assert_array_equal(np.asarray(kept), PICTURES)
    np.testing.assert_array_equal(np.stack(list(kept)), PICTURES)
    assert not list(tmp_path.iterdir())
    with pytest.raises(IndexError):
        kept[np.array([23])]


def test_pictures_of_another_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="23 pictures take 1104 bytes, got 1056"):
        StoredPixels((picture.tobytes() for picture in PICTURES[:22]), PICTURES.shape, folder=tmp_path)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    """A hospital of 160 scans in groups of two; its classes differ in brightness."""
    folder = tmp_path_factory.mktemp("stored") / "shards"
    draw = np.random.default_rng(0)
    labels = np.arange(160) // 2 % 2
    scans = (draw.integers(0, 128, (160, 16, 16)) + 100 * labels[:, None, None]).astype(np.uint8)
    source = from_arrays(scans, labels, groups=np.arange(160) // 2)
    partition(source, name="", how=Iid(), num_hospitals=1, seed=0, size=16, channels=1, folder=folder, root_size=0)
    return Shard.open(folder / "hospital-00.parquet")


@pytest.mark.parametrize("role", [Role.TRAIN, Role.VALIDATION, Role.TEST, Role.ROOT])
def test_a_shards_pictures_are_the_same_on_the_disk_and_in_memory(shard: Shard, role: Role) -> None:
    on_disk = shard.pictures(role, at_most=-1)
    assert isinstance(on_disk, StoredPixels)
    assert isinstance(shard.pictures(role), np.ndarray)
    np.testing.assert_array_equal(np.asarray(on_disk), shard.images(role))


def test_a_hospital_trains_and_answers_the_same_bits_from_the_disk(shard: Shard, monkeypatch) -> None:
    training = LocalTraining(
        SmallCnn(width=4), FedBNP(), channels=1, num_classes=2, size=16, rounds=2, epochs=2, batch_size=8,
        learning_rate=0.05, momentum=0.9, weight_decay=1e-4, seed=0,
    )  # fmt: skip

    def played() -> tuple[bytes, bytes]:
        hospital = Hospital("a", shard, trainer=Trainer(training), state_file=None)
        update = hospital.train(hospital.trainer.initial_weights, 1)
        (answers,) = hospital.evaluate(hospital.trainer.initial_weights + update.delta, [Role.TEST])
        return update.delta.tobytes(), answers.probabilities.tobytes()

    in_memory = played()
    everything = Shard.pictures
    monkeypatch.setattr(Shard, "pictures", lambda self, role: everything(self, role, at_most=-1))
    assert isinstance(shard.pictures(Role.TRAIN), StoredPixels)
    assert played() == in_memory


@dataclass(frozen=True)
class Bright:
    """As many colour pictures of 96 pixels as asked for, one group each, dark or bright."""

    count: int
    classes: tuple[str, ...] = ("dark", "bright")
    channels: int = 3

    def index(self) -> pa.Table:
        rows = np.arange(self.count)
        return pa.table({"label": rows % 2, "group": rows})

    def images(self, *, size: int, channels: int) -> Iterator[np.ndarray]:
        for start in range(0, self.count, 100):
            shades = 100 + 100 * (np.arange(start, start + 100) % 2)
            yield np.broadcast_to(shades[:, None, None, None], (100, channels, size, size)).astype(np.uint8)


# In a process of its own, because the peak of a process never falls again. The small shard comes first, so that only
# what grows with the number of scans is measured.
MEASURE = """
import resource, sys
from pathlib import Path
from fedplatform.data.shards import Shard
from fedplatform.federated.hospital import Hospital
from fedplatform.learning.models import SmallCnn
from fedplatform.learning.training import FedAvg, LocalTraining, Trainer

trainer = Trainer(LocalTraining(
    SmallCnn(width=1), FedAvg(), channels=3, num_classes=2, size=96, rounds=1, epochs=1, batch_size=32,
    learning_rate=0.05, momentum=0.9, weight_decay=1e-4, seed=0))
for file in sys.argv[1:]:
    hospital = Hospital("a", Shard.open(Path(file)), trainer=trainer, state_file=None)
    print(hospital.train(trainer.initial_weights, 1).num_examples, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_hospital_of_more_scans_than_it_holds_trains_in_the_same_memory(tmp_path: Path) -> None:
    files = []
    for count in (400, 18_000):
        partition(
            Bright(count), name="", how=Iid(), num_hospitals=1, seed=0, size=96, channels=3, root_size=0,
            folder=tmp_path / str(count),
        )  # fmt: skip
        files.append(str(tmp_path / str(count) / "hospital-00.parquet"))
    output = subprocess.run([sys.executable, "-c", MEASURE, *files], capture_output=True, text=True, check=True)
    (few, before), (many, after) = (map(int, line.split()) for line in output.stdout.splitlines())
    assert (many - few) * 96 * 96 * 3 > 290 << 20
    assert (after - before) / 1024 < 100
