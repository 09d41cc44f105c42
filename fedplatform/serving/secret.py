"""The secret of a hospital's purifier noise: a file that only its owner reads."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from fedplatform.core.private_files import OwnedFileError, make_owned, read_owned

LENGTH = 32  # bytes


def secret_path(run: Path, hospital_id: str) -> Path:
    """Where a run keeps the secret of a hospital if nobody says otherwise: outside every bundle."""
    return run / "secrets" / f"{hospital_id}.secret"


def read_secret(path: Path) -> bytes:
    """The secret in ``path``, hexadecimal digits there.

    Raises :class:`OwnedFileError` where it is missing, may be read by others or is no secret.
    """
    try:
        secret = bytes.fromhex(read_owned(path).decode("ascii"))
    except (UnicodeDecodeError, ValueError) as error:
        if isinstance(error, OwnedFileError):
            raise
        raise OwnedFileError(f"{path} holds no secret: {2 * LENGTH} hexadecimal digits") from error
    if len(secret) != LENGTH:
        raise OwnedFileError(f"{path} holds no secret: {2 * LENGTH} hexadecimal digits")
    return secret


def fingerprint(secret: bytes) -> str:
    """Sixteen hexadecimal digits that tell secrets apart and say nothing of them; they stand in the audit log."""
    return hashlib.sha256(b"fedplatform: fingerprint of a noise secret\0" + secret).hexdigest()[:16]


def open_secret(path: Path) -> bytes:
    """The same, drawn and written at the first call; of two first calls at once, both get the one that is kept."""
    if not path.exists():
        make_owned(path, f"{secrets.token_hex(LENGTH)}\n".encode())
    return read_secret(path)
