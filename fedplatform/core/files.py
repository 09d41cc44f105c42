"""Files and folders that are on the disk whole or not at all, and folders that one process works in at a time."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

import yaml
from filelock import FileLock, Timeout

from fedplatform.core.settings import ExperimentError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a file, then put it in place, replacing one that is there. Raises OSError.

    A reader never sees half of it. It may be lost in a power cut: :func:`write_durably` waits for the disk.
    """
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_durably(path: Path, data: bytes) -> None:
    """Put a file in place, replacing one that is there; it outlives a power cut once this returns. Raises OSError."""
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(partial, data)
        partial.replace(path)
        sync_folder(path.parent)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_folder_durably(path: Path, files: Mapping[str, bytes]) -> None:
    """Put a whole folder in place, replacing one that is there: all of its files or none. Raises OSError."""
    partial = _partial(path)
    try:
        partial.mkdir(parents=True)
        for name, data in files.items():
            _write(partial / name, data)
        sync_folder(partial)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
        sync_folder(path.parent)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, as fsync has a file's contents."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone_in(folder: Path, *, what: str) -> Iterator[None]:
    """No other process works in a folder meanwhile, on ``what``. Raises :class:`ExperimentError` where one does."""
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ExperimentError(f"{what} is going on in another process") from None
    except OSError as error:
        raise ExperimentError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def is_busy(folder: Path) -> bool:
    """Whether another process works in a folder at this moment, as by :func:`alone_in`."""
    try:
        with FileLock(folder / ".lock", blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that cannot be written is worked in by nobody from here
        return False


def claim(
    folder: Path, settings: Mapping[str, object], *, what: str, before: Mapping[str, object] = MappingProxyType({})
) -> None:
    """Make the folder this table's own, so that it never mixes settings; ``what`` is ``comparison`` or the like.

    ``before`` says what a setting that the folder's file lacks was worth when it did not exist: its default. So a table
    that was begun before an update goes on after it. Raises :class:`ExperimentError` where the folder holds one with
    other settings, or cannot be written.
    """
    file = folder / f"{what}.yaml"
    if file.exists():
        found = yaml.safe_load(file.read_text())
        found = {**{key: before[key] for key in settings if key in before}, **found}
        other = next((key for key in {**settings, **found} if found.get(key) != settings.get(key)), None)
        if other:
            raise ExperimentError(
                f"{file} was begun with {other}={found.get(other)!r}, got {settings.get(other)!r}; "
                "go on with the same settings, or in another folder"
            )
        return
    try:
        text = yaml.safe_dump(dict(settings), sort_keys=False)
        write_whole(file, lambda path: path.write_text(text))
    except OSError as error:
        raise ExperimentError(f"cannot write in {folder}: {error.strerror}") from error


def claim_files(folder: Path, files: Iterable[Path], *, what: str) -> None:
    """Note beside a claim what the user's own files held, so that no result of another draft of one stays in a table.

    Files may join later. Raises :class:`ExperimentError` where one has changed since, or the folder cannot be written.
    """
    record = folder / f"{what}-files.yaml"
    known: dict[str, str] = yaml.safe_load(record.read_text()) if record.exists() else {}
    found = {str(file.resolve()): sha256(file.read_bytes()).hexdigest() for file in files}
    for file, digest in found.items():
        if known.get(file, digest) != digest:
            raise ExperimentError(
                f"{file} has changed since the {what} in {folder} was begun; take another folder for the new draft"
            )
    if not found.keys() <= known.keys():
        text = yaml.safe_dump({**known, **found})
        try:
            write_whole(record, lambda path: path.write_text(text))
        except OSError as error:
            raise ExperimentError(f"cannot write in {folder}: {error.strerror}") from error


def _partial(path: Path) -> Path:
    """Another name in the same folder, with the same suffix, which no other process uses."""
    return path.with_name(f".{path.stem[:80]}.{secrets.token_hex(4)}.partial{path.suffix}")


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
