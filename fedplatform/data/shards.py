"""Every hospital's scans in a file of its own, written in one pass and opened by nobody else."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fedplatform.core.files import write_whole
from fedplatform.core.messages import SUBGROUP
from fedplatform.core.tasks import TaskName, kind_names, misfit, places_in_tally
from fedplatform.data.brightness import Pixels
from fedplatform.data.error import DataError
from fedplatform.data.index import Index, Integers, Strings, holds_lists, matrix_of
from fedplatform.data.leakage import THRESHOLD, groups_of
from fedplatform.data.origin import Origin
from fedplatform.data.partition import SERVER, Partition, spread
from fedplatform.data.source import Selective, Source
from fedplatform.data.splits import LEFT_OUT, Role, Split, assign_roles, thin
from fedplatform.data.stored_pixels import StoredPixels
from fedplatform.data.subgroups import Subgroups, subgroups_in

MANIFEST = "manifest.json"
ROOT = "root.parquet"
PATIENTS, NAMED = b"patients", b"named"  # in the metadata of a shard
NOBODY = -2  # in the place of a hospital: the scan is written to no shard
# What all open shards together may hold back before it is written.
WAITING_BYTES = 32 << 20
MOST_WAITING_ROWS = 1024
HELD_BYTES = 256 << 20  # pictures of one role that a hospital holds in memory; more of them stay on the disk

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """How the shards came to be; ``partition`` is the object in words, e.g. ``Dirichlet(concentration=0.5)``."""

    source: str
    split: str
    partition: str
    seed: int
    size: int
    channels: int
    scans: int = 0


@dataclass(frozen=True)
class ShardSummary:
    """One shard: its file, the scans of every class by role, and a digest of its pixels, labels and roles.

    Where a scan has any number of findings, the counts are of scans with each finding, and of those without any.
    """

    file: str
    counts: dict[str, tuple[int, ...]]
    digest: str


@dataclass(frozen=True)
class Manifest:
    """What lies in a folder of shards: ``hospitals`` in their order, and ``root`` or None where the server has none.

    ``origins`` are the kinds of files that the scans' headers named; ``is_multilabel`` says that a scan has any number
    of findings.
    """

    settings: Settings
    classes: tuple[str, ...]
    hospitals: tuple[ShardSummary, ...]
    root: ShardSummary | None
    origins: tuple[Origin, ...] = ()
    is_multilabel: bool = False

    @property
    def counted(self) -> tuple[str, ...]:
        """What the counts of a shard are of."""
        return kind_names(self.classes, multilabel=self.is_multilabel)

    @property
    def digest(self) -> str:
        """One digest of all contents, equal where every hospital has the same scans in the same roles."""
        shards = [*self.hospitals, *([self.root] if self.root else [])]
        return sha256("".join(f"{shard.file}{shard.digest}" for shard in shards).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write ``manifest.json``."""
        text = json.dumps(asdict(self) | {"digest": self.digest}, indent=2)
        write_whole(folder / MANIFEST, lambda path: path.write_text(text + "\n", encoding="utf-8"))

    @staticmethod
    def load(folder: Path) -> Manifest:
        """Read the manifest of a folder of shards."""
        try:
            found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            return Manifest(
                settings=Settings(**found["settings"]),
                classes=tuple(found["classes"]),
                hospitals=tuple(_summary(shard) for shard in found["hospitals"]),
                root=_summary(found["root"]) if found["root"] else None,
                origins=tuple(Origin(**origin) for origin in found["origins"]),
                is_multilabel=found.get("is_multilabel", False),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: no folder of shards ({error})") from error


@dataclass(frozen=True)
class Shard:
    """One hospital's scans (or the server's root set) on disk; pixels are read when they are asked for.

    ``names_patients`` says whether the source named the patients; None where the file does not tell.
    """

    path: Path
    classes: tuple[str, ...]
    channels: int
    size: int
    is_multilabel: bool = False
    names_patients: bool | None = None

    @staticmethod
    def open(path: Path) -> Shard:
        """Read what the file says of itself, no pixels. Raises DataError where it is no shard."""
        try:
            schema = pq.read_schema(path)
            metadata = schema.metadata or {}
            classes = tuple(json.loads(metadata[b"classes"]))
            named = metadata.get(PATIENTS)
            return Shard(
                path,
                classes,
                int(metadata[b"channels"]),
                int(metadata[b"size"]),
                holds_lists(schema.field("label").type),
                None if named is None else named == NAMED,
            )
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise DataError(f"{path}: not a shard ({error})") from error

    def images(self, role: Role) -> Pixels:
        """The pictures of a role as (n, channels, size, size) uint8, read-only: they lie in Arrow's own memory."""
        column = self._column("pixels", role)
        shape = (len(column), self.channels, self.size, self.size)
        if len(column) == 0:
            return np.zeros(shape, np.uint8)
        width = self.channels * self.size**2
        return np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width).reshape(shape)

    def pictures(self, role: Role, *, at_most: int = HELD_BYTES) -> Pixels | StoredPixels:
        """The same; where they take more than ``at_most`` bytes, they stay on the disk until rows are asked for."""
        shape = (len(self.labels(role)), self.channels, self.size, self.size)
        if int(np.prod(shape)) <= at_most:
            return self.images(role)
        return StoredPixels(self._bytes(role), shape, folder=self.path.parent)

    def labels(self, role: Role) -> Integers:
        """The labels of a role, (n,) int64, or (n, classes) of findings, in the order of the pictures."""
        column = self._column("label", role)
        return matrix_of(column, len(self.classes)) if self.is_multilabel else np.asarray(column.to_numpy())

    def groups(self, role: Role) -> Integers:
        """The groups of a role, (n,) int64, in the order of the pictures."""
        return np.asarray(self._column("group", role).to_numpy())

    def subgroups(self, role: Role) -> Subgroups:
        """The subgroups of a role by name, each (n,), in the order of the pictures; none where nobody named any."""
        names = [name for name in pq.read_schema(self.path).names if name.startswith(SUBGROUP)]
        if not names:
            return {}
        return subgroups_in(pq.read_table(self.path, columns=names, filters=[("role", "=", role.value)]))

    def rows(self, role: Role) -> Integers:
        """Where the pictures of a role stand in the source, (n,) int64, ascending."""
        return np.asarray(self._column("row", role).to_numpy())

    def _bytes(self, role: Role) -> Iterator[Any]:
        """The bytes of a role's pictures in order, some megabytes at a time."""
        rows = max(1, WAITING_BYTES // (self.channels * self.size**2))
        with pq.ParquetFile(self.path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=rows, columns=["pixels", "role"]):
                kept = batch.filter(pc.equal(batch.column("role"), role.value)).column("pixels")
                yield from (picture.as_buffer() for picture in kept)

    def _column(self, name: str, role: Role) -> Any:
        table = pq.read_table(self.path, columns=[name], filters=[("role", "=", role.value)])
        return table.column(name).combine_chunks()


def partition(
    source: Source,
    *,
    name: str,
    how: Partition,
    num_hospitals: int,
    seed: int,
    size: int,
    channels: int,
    folder: Path,
    split: Split = "group_safe",
    twin_threshold: float = THRESHOLD,
    graders: Sequence[int] | None = None,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.1,
    root_size: int = 100,
    scans: int = 0,
    task: TaskName | None = None,
    may_lack: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Split a source, spread it over hospitals and write the shards into a new ``folder``.

    ``name`` is what the manifest calls the source; ``scans`` is of :func:`thin`, 0 for all; ``task`` is what the data
    must be of, None for any; the rest is of :func:`assign_roles`, :func:`spread` and :func:`write_shards`. Where the
    source gives no groups, near-identical pictures (cosine of at least ``twin_threshold``) are searched for first.
    """
    if folder.exists():
        raise DataError(f"{folder}: exists already")
    index = Index.of(source)
    if task is not None and (complaint := misfit(task, multilabel=index.is_multilabel)):
        raise DataError(complaint)
    if split == "redrawn":
        index = replace(index, splits=None, folds=None)
    names_patients = index.groups is not None and split != "random"
    index = replace(
        index, groups=np.arange(len(index)) if split == "random" else groups_of(source, index, threshold=twin_threshold)
    )
    roles = assign_roles(
        index,
        split=split,
        seed=seed,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        root_size=root_size,
        may_lack=may_lack,
    )
    if 0 < scans < len(index):
        roles = thin(index, roles, scans=scans, seed=seed, split=split)
    kept = roles != LEFT_OUT
    hospital_of = np.full(len(index), NOBODY, np.int64)
    hospital_of[kept] = spread(
        index.at(kept), roles[kept], how, num_hospitals=num_hospitals, seed=seed, graders=graders
    )
    settings = Settings(name, split, repr(how), seed, size, channels, scans)
    return write_shards(
        source,
        index,
        roles,
        hospital_of,
        settings=settings,
        folder=folder,
        names_patients=names_patients,
        progress=progress,
    )


def write_shards(
    source: Source,
    index: Index,
    roles: Strings,
    hospital_of: Integers,
    *,
    settings: Settings,
    folder: Path,
    names_patients: bool = True,
    progress: Progress | None = None,
) -> Manifest:
    """Stream the source once into ``hospital-00.parquet``, ... and ``root.parquet`` in a new ``folder``.

    ``roles`` and ``hospital_of`` are (n,); scans of :data:`NOBODY` are streamed past, or not asked for where the source
    is :class:`Selective`. ``names_patients`` says whether groups are patients that the source names, or were found in
    the pictures. ``progress`` is called with the scans done and to do. The folder appears whole or not at all.
    Raises DataError where it exists, cannot be written, or the source breaks its own index.
    """
    num_hospitals = int(hospital_of.max()) + 1
    files = {hospital: f"hospital-{hospital:02d}.parquet" for hospital in range(num_hospitals)}
    if (hospital_of == SERVER).any():
        files[SERVER] = ROOT
    shape = (settings.channels, settings.size, settings.size)
    groups = np.arange(len(index)) if index.groups is None else index.groups
    with _appearing_whole(folder) as unfinished, ExitStack() as stack:
        most_rows = WAITING_BYTES // (len(files) * int(np.prod(shape)))
        writers = {
            hospital: stack.enter_context(
                _ShardWriter(
                    unfinished / file,
                    index,
                    shape,
                    min(max(most_rows, 1), MOST_WAITING_ROWS),
                    names_patients=names_patients,
                )
            )
            for hospital, file in files.items()
        }
        rows, batches = _streamed(source, hospital_of != NOBODY, settings)
        done = 0
        for batch in batches:
            _check_batch(batch, shape, done, len(rows))
            for picture, row in zip(batch, rows[done : done + len(batch)].tolist(), strict=True):
                if hospital_of[row] != NOBODY:
                    told = [str(words[row]) for words in index.subgroups.values()]
                    writers[int(hospital_of[row])].add(picture, index.labels[row], groups[row], roles[row], row, told)
            done += len(batch)
            if progress is not None:
                progress(done, len(rows))
        if done != len(rows):
            raise DataError(f"the source gave {done} pictures for the {len(rows)} rows of its index")
        stack.close()
        summaries = {hospital: writers[hospital].summary() for hospital in files}
        manifest = Manifest(
            settings,
            index.classes,
            tuple(summaries[number] for number in range(num_hospitals)),
            summaries.get(SERVER),
            index.origins,
            index.is_multilabel,
        )
        manifest.save(unfinished)
    return manifest


def delete_scans(folder: Path, file: str) -> None:
    """Delete the scans of one shard in a folder for good; the file and its line in the manifest stay, empty."""
    path, manifest = folder / file, Manifest.load(folder)
    schema = pq.read_schema(path)
    write_whole(path, lambda place: pq.write_table(schema.empty_table(), place))
    none = {role: (0,) * len(manifest.counted) for role in (role.value for role in Role)}
    empty = ShardSummary(file, none, sha256().hexdigest())
    hospitals = tuple(empty if shard.file == file else shard for shard in manifest.hospitals)
    replace(manifest, hospitals=hospitals).save(folder)


def _streamed(source: Source, kept: np.ndarray, settings: Settings) -> tuple[Integers, Iterator[Pixels]]:
    """The rows that the source is read for, and their pictures: what is kept, or all where it can only give all."""
    if isinstance(source, Selective):
        rows = np.flatnonzero(kept)
        return rows, source.images_at(rows, size=settings.size, channels=settings.channels)
    return np.arange(len(kept)), source.images(size=settings.size, channels=settings.channels)


class _ShardWriter:
    """Gathers rows of one shard and writes them as row groups."""

    def __init__(
        self, path: Path, index: Index, shape: tuple[int, int, int], most_rows: int, *, names_patients: bool
    ) -> None:
        self._path = path
        self._most_rows = most_rows
        self._num_classes = len(index.classes)
        label = pa.list_(pa.int64(), self._num_classes) if index.is_multilabel else pa.int64()
        self._schema = pa.schema(
            [
                pa.field("pixels", pa.binary(int(np.prod(shape))), nullable=False),
                pa.field("label", label, nullable=False),
                pa.field("group", pa.int64(), nullable=False),
                pa.field("role", pa.string(), nullable=False),
                pa.field("row", pa.int64(), nullable=False),
                *(pa.field(f"{SUBGROUP}{name}", pa.string(), nullable=False) for name in index.subgroups),
            ],
            metadata={
                "classes": json.dumps(index.classes),
                "channels": str(shape[0]),
                "size": str(shape[1]),
                PATIENTS: NAMED if names_patients else b"found",
            },
        )
        self._waiting: list[tuple[bytes | int | list[int] | str, ...]] = []
        self._digest = sha256()
        self._counts = {role.value: np.zeros(len(index.kind_names), np.int64) for role in Role}

    def __enter__(self) -> _ShardWriter:
        self._file = pq.ParquetWriter(
            self._path, self._schema, compression="zstd", compression_level=1, use_dictionary=["role"]
        )
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            self._flush()
            self._file.close()
        else:
            with suppress(OSError):  # the disk that failed once fails again; the first error is the one to tell
                self._file.close()

    def add(
        self,
        picture: Pixels,
        label: np.int64 | Integers,
        group: int,
        role: str,
        row: int,
        subgroups: Sequence[str] = (),
    ) -> None:
        pixels, told = picture.tobytes(), label.tolist()
        self._digest.update(pixels)
        self._digest.update(f"{told} {role} {row}\n".encode())
        self._counts[role][places_in_tally(label, self._num_classes)] += 1
        self._waiting.append((pixels, told, int(group), str(role), row, *subgroups))
        if len(self._waiting) >= self._most_rows:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            rows = zip(*self._waiting, strict=True)
            columns = [pa.array(values, kind) for values, kind in zip(rows, self._schema.types, strict=True)]
            self._file.write_table(pa.table(columns, schema=self._schema))
            self._waiting = []

    def summary(self) -> ShardSummary:
        counts = {role: tuple(int(count) for count in by_class) for role, by_class in self._counts.items()}
        return ShardSummary(self._path.name, counts, self._digest.hexdigest())


@contextmanager
def _appearing_whole(folder: Path) -> Iterator[Path]:
    """A hidden folder beside ``folder`` that is renamed to it at the end, or removed with all in it."""
    if folder.exists():
        raise DataError(f"{folder}: exists already")
    made = [parent for parent in folder.parents if not parent.exists()]
    unfinished: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        yield unfinished
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except BaseException as error:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error
        raise


def _check_batch(batch: Pixels, shape: tuple[int, int, int], row: int, count: int) -> None:
    if batch.dtype != np.uint8 or batch.shape[1:] != shape:
        raise DataError(f"the source must give uint8 pictures of shape {shape}, got {batch.dtype} {batch.shape[1:]}")
    if row + len(batch) > count:
        raise DataError(f"the source gives more pictures than the {count} rows of its index")


def _summary(found: dict[str, Any]) -> ShardSummary:
    counts = {role: tuple(by_class) for role, by_class in found["counts"].items()}
    return ShardSummary(found["file"], counts, found["digest"])
