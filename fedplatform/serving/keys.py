"""API keys: who may ask, and for which hospital."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self


class KeysError(ValueError):
    """The file of keys cannot be used as it is; the message is one line for the person who keeps it."""


@dataclass(frozen=True)
class Key:
    """One key, which opens one hospital's model. What is kept of the secret is its SHA-256."""

    key_id: str
    hospital_id: str
    sha256: str
    revoked: bool = False


class Keys:
    """The keys in a JSON file of mode 600, read anew whenever the file changes: a revoked key opens nothing from then on.

    A file that is not there holds no keys. Raises :class:`KeysError` where others may read it, or it is broken.
    """

    @classmethod
    def load(cls, path: Path) -> Self:
        """The keys in ``path``."""
        raise NotImplementedError

    def __iter__(self):  # type: ignore[no-untyped-def]
        """All keys, revoked ones too, in the order in which they were added."""
        raise NotImplementedError

    def add(self, hospital_id: str) -> str:
        """A new key for a hospital; returns the secret, which is shown this once and kept nowhere."""
        raise NotImplementedError

    def revoke(self, key_id: str) -> None:
        """Make a key open nothing; its line stays, for the audit log names it. Raises :class:`KeysError` if unknown."""
        raise NotImplementedError

    def opened_by(self, secret: str) -> Key | None:
        """The key that a secret opens; None for every other secret, in a time that does not tell how near it was."""
        raise NotImplementedError
