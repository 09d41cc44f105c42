"""API keys: who may ask, and for which hospital."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError

from fedplatform.core.private_files import OwnedFileError, read_owned, write_owned

MARK = "fed"  # secrets begin with it, so that whoever finds one in a log or a repository knows what it is
NOTHING = "0" * 64  # no secret has this hash


@dataclass(frozen=True)
class Key:
    """One key, which opens one hospital's model. What is kept of the secret is its SHA-256.

    A slow hash would guard a secret that people can guess; this one is 32 random bytes.
    """

    key_id: str
    hospital_id: str
    sha256: str
    revoked: bool = False


class KeysError(OwnedFileError):
    """The keys cannot be used or changed as asked; the message is one line for the person who keeps them."""


class Keys:
    """The keys in a JSON file of mode 600, read anew whenever it changes: a key that is revoked opens nothing any more.

    A file that is not there holds no keys. Everything raises :class:`KeysError` where the file may be read by others or
    is broken, so a server whose keys are lost lets nobody in.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}

    @classmethod
    def load(cls, path: Path) -> Self:
        """The keys in ``path``."""
        keys = cls(path)
        keys._refresh()
        return keys

    def __iter__(self) -> Iterator[Key]:
        """All keys, revoked ones too, in the order in which they were added."""
        self._refresh()
        return iter(tuple(self._keys.values()))

    def add(self, hospital_id: str) -> str:
        """A new key for a hospital; returns the secret, which is shown this once and kept nowhere."""
        if not hospital_id:
            raise KeysError("a key opens one hospital's model, got no hospital")
        with self._changing():
            key_id = next(name for name in iter(lambda: secrets.token_hex(4), None) if name not in self._keys)
            secret = f"{MARK}_{key_id}_{secrets.token_urlsafe(32)}"
            self._write({**self._keys, key_id: Key(key_id, hospital_id, _hash(secret))})
        return secret

    def revoke(self, key_id: str) -> None:
        """Make a key open nothing; its line stays, for the audit log names it. Raises :class:`KeysError` if unknown."""
        with self._changing():
            if key_id not in self._keys:
                raise KeysError(f"no key {key_id!r}; there are: {', '.join(self._keys) or 'none'}")
            self._write({**self._keys, key_id: replace(self._keys[key_id], revoked=True)})

    def opened_by(self, secret: str) -> Key | None:
        """The key that a secret opens; None for every other secret, in a time that does not tell how near it was."""
        self._refresh()
        key = self._keys.get(secret[len(MARK) + 1 : len(MARK) + 9])
        same = hmac.compare_digest(_hash(secret), key.sha256 if key else NOTHING)
        return key if key and same and not key.revoked else None

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._seen, self._keys = None, {}
            return
        except OSError as error:
            raise KeysError(f"{self._path} cannot be read: {error.strerror}") from error
        seen = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)  # a change of mode changes the last of them
        if seen == self._seen:
            return
        try:
            keys = TypeAdapter(list[Key]).validate_json(read_owned(self._path))
        except ValidationError as error:
            raise KeysError(f"{self._path} is no file of keys") from error
        except OwnedFileError as error:
            raise KeysError(str(error)) from error
        self._keys, self._seen = {key.key_id: key for key in keys}, seen

    def _write(self, keys: dict[str, Key]) -> None:
        try:
            write_owned(self._path, json.dumps([asdict(key) for key in keys.values()], indent=1).encode())
        except OwnedFileError as error:
            raise KeysError(str(error)) from error
        self._refresh()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Alone among all processes that change this file, and with what it holds now."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise KeysError(f"{self._path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            self._refresh()
            yield
        finally:
            os.close(folder)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
