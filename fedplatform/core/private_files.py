"""Files that only their owner may read: written whole or not at all, refused where others may read them."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from fedplatform.core.errors import FedplatformError
from fedplatform.core.files import sync_folder

PRIVATE = 0o600


class OwnedFileError(FedplatformError, ValueError):
    """Such a file cannot be used as it is; the message is one line for the person who keeps it."""


def read_owned(path: Path) -> bytes:
    """The contents of a private file. Raises :class:`OwnedFileError` where there is none, or others may read it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & ~PRIVATE:
                raise OwnedFileError(f"{path} may be read by others (mode {mode:o}); 'chmod 600 {path}' closes it")
            return file.read()
    except OSError as error:
        raise OwnedFileError(f"{path} cannot be read: {error.strerror}") from error


def write_owned(path: Path, data: bytes) -> None:
    """Write a private file, replacing one that is there.

    Raises :class:`OwnedFileError` where it cannot be written; then it is as it was.
    """
    _write(path, data, Path.replace)


def make_owned(path: Path, data: bytes) -> None:
    """Write a private file unless there is one: then that one stays, whoever was first. Raises the same error."""

    def link(partial: Path, path: Path) -> None:
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(partial)

    _write(path, data, link)


def _write(path: Path, data: bytes, put: Callable[[Path, Path], object]) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        put(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise OwnedFileError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
