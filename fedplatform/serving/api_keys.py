"""API keys: who may ask, and for which hospital."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError

from fedplatform.core.private_files import OwnedFileError, read_owned, write_owned

MARK = "fed"  # secrets begin with it, so that whoever finds one in a log or a repository knows what it is
NOTHING = "0" * 64  # no secret has this hash
SOON, YEAR = timedelta(days=14), timedelta(days=365)


@dataclass(frozen=True)
class Key:
    """One key, which opens one hospital's model. What is kept of the secret is its SHA-256.

    A slow hash would guard a secret that people can guess; this one is 32 random bytes. ``expires`` is the first day
    (UTC) on which it opens nothing, None for a key that never expires.
    """

    key_id: str
    hospital_id: str
    sha256: str
    revoked: bool = False
    expires: date | None = None

    def is_open(self, today: date) -> bool:
        """Whether it opens its hospital's model on a day."""
        return not self.revoked and (self.expires is None or today < self.expires)


KEYS_JSON = TypeAdapter(list[Key])


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

    def add(self, hospital_id: str, *, expires: date | None = None) -> str:
        """A new key for a hospital; returns the secret, which is shown this once and kept nowhere."""
        if not hospital_id:
            raise KeysError("a key opens one hospital's model, got no hospital")
        with self._changing():
            key_id = next(name for name in iter(lambda: secrets.token_hex(4), None) if name not in self._keys)
            secret = f"{MARK}_{key_id}_{secrets.token_urlsafe(32)}"
            self._write({**self._keys, key_id: Key(key_id, hospital_id, _hash(secret), expires=expires)})
        return secret

    def revoke(self, key_id: str) -> None:
        """Make a key open nothing; its line stays, for the audit log names it. Raises :class:`KeysError` if unknown."""
        with self._changing():
            if key_id not in self._keys:
                raise KeysError(f"no key {key_id!r}; there are: {', '.join(self._keys) or 'none'}")
            self._write({**self._keys, key_id: replace(self._keys[key_id], revoked=True)})

    def opened_by(self, secret: str) -> Key | None:
        """Look up the key for a secret in constant time; None if there is none, or it was revoked or has expired."""
        self._refresh()
        key = self._keys.get(secret[len(MARK) + 1 : len(MARK) + 9])
        same = hmac.compare_digest(_hash(secret), key.sha256 if key else NOTHING)
        return key if key and same and key.is_open(today()) else None

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
            keys = KEYS_JSON.validate_json(read_owned(self._path))
        except ValidationError as error:
            raise KeysError(f"{self._path} is no file of keys") from error
        except OwnedFileError as error:
            raise KeysError(str(error)) from error
        self._keys, self._seen = {key.key_id: key for key in keys}, seen

    def _write(self, keys: dict[str, Key]) -> None:
        try:
            write_owned(self._path, KEYS_JSON.dump_json(list(keys.values()), indent=1))
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


def today() -> date:
    """The day in UTC, by which keys expire."""
    return datetime.now(UTC).date()


def expiry(text: str | None) -> date | None:
    """What ``--expires`` asks for: a day, "never" (None), or nothing at all: a year from today."""
    if text is None:
        return today() + YEAR
    if text == "never":
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise KeysError(f"a key expires on a day, as 2027-01-31, or never, got {text!r}") from None
    if day <= today():
        raise KeysError(f"a key expires after today, got {day}")
    return day


def doubts(keys: Keys, hospitals: Sequence[str], *, day: date) -> list[str]:
    """What the keeper of the keys should know, a sentence each: keys without a model, expired ones, none at all."""
    said = []
    for key in keys:
        if key.revoked:
            continue
        if key.hospital_id not in hospitals:
            said.append(f"key {key.key_id} is for {key.hospital_id!r}, which has no model here: {', '.join(hospitals)}")
        if key.expires is not None and key.expires <= day + SOON:
            said.append(f"key {key.key_id} of {key.hospital_id} {'expired' if key.expires <= day else 'expires'} on "
                        f"{key.expires}")  # fmt: skip
    if not any(key.is_open(day) for key in keys):
        said.append("no key is open, so nobody can ask: fedplatform keys add HOSPITAL")
    return said


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
