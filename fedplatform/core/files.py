"""Files and folders that are on the disk whole or not at all, whatever dies while they are written."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path


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


def _partial(path: Path) -> Path:
    """Another name in the same folder, which no other process uses: one that was taken for dead may still write."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
