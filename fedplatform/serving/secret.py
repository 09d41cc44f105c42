"""The secret of a hospital's purifier noise: a file that only its owner reads."""

from __future__ import annotations

from pathlib import Path


class SecretError(ValueError):
    """The file of a secret cannot be used as it is; the message is one line for the person who keeps it."""


def secret_path(run: Path, hospital_id: str) -> Path:
    """Where a run keeps the secret of a hospital if nobody says otherwise: outside every bundle."""
    return run / "secrets" / f"{hospital_id}.secret"


def read_secret(path: Path) -> bytes:
    """The 32 bytes of the secret in ``path``. Raises :class:`SecretError` where it is missing, open to others or broken."""
    raise NotImplementedError


def open_secret(path: Path) -> bytes:
    """The same, made at the first call: 32 random bytes as hexadecimal text, mode 600."""
    raise NotImplementedError
