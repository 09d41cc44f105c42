"""Who a hospital is: an Ed25519 key whose private half never leaves it; the server holds a roster of public ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fedplatform.core.private_files import OwnedFileError, make_owned, read_owned
from fedplatform.core.settings import ExperimentError

MARK = "ed25519:"  # in front of a public key in hexadecimal digits


def make_key(path: Path) -> str:
    """Write a new private key (PEM, mode 600) and return its public half as the roster holds it.

    Raises :class:`OwnedFileError` where there is a file already: a key that is lost cannot be made again.
    """
    if path.exists():
        raise OwnedFileError(
            f"{path} exists already; a key is not replaced, and 'fedplatform keygen {path} --show' shows it"
        )
    made = Ed25519PrivateKey.generate()
    make_owned(path, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return public_half(read_key(path))


def read_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a file. Raises :class:`OwnedFileError` where others may read it, or it holds none."""
    try:
        key = load_pem_private_key(read_owned(path), password=None)
    except OwnedFileError:
        raise
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise OwnedFileError(f"{path} holds no private key; 'fedplatform keygen {path}' makes one") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise OwnedFileError(f"{path} holds a private key that is not Ed25519")
    return key


def public_half(key: Ed25519PrivateKey) -> str:
    """The public half of a key as the roster holds it."""
    return MARK + key.public_key().public_bytes_raw().hex()


@dataclass(frozen=True)
class Roster:
    """The hospitals outside the cluster and the public key of each, as text."""

    keys: Mapping[str, str]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a YAML file of ``hospital: ed25519:HEX`` lines. Raises :class:`ExperimentError` in one line."""
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ExperimentError(f"{path} is no roster: {' '.join(str(error).split())}") from error
        if not isinstance(found, dict) or not found:
            raise ExperimentError(f"{path} is no roster: it holds 'hospital: {MARK}...' lines")
        return cls.checked(found, where=str(path))

    @classmethod
    def checked(cls, keys: Mapping[Any, Any], *, where: str) -> Self:
        """A roster of these keys. Raises :class:`ExperimentError` where one is none, or two hospitals share one."""
        for hospital_id, key in keys.items():
            if not _is_public(key):
                raise ExperimentError(f"{where}: the key of {hospital_id} is not {MARK} and 64 hexadecimal digits")
        if len(set(keys.values())) < len(keys):
            raise ExperimentError(f"{where}: every hospital has a key of its own, got one key twice")
        return cls({str(hospital_id): str(key) for hospital_id, key in keys.items()})

    def only(self, hospital_ids: tuple[str, ...]) -> Self:
        """The roster of these hospitals. Raises :class:`ExperimentError` where one is missing."""
        if missing := [name for name in hospital_ids if name not in self.keys]:
            raise ExperimentError(f"the roster has no key of {', '.join(missing)}")
        return type(self)({name: self.keys[name] for name in hospital_ids})

    def has_signed(self, hospital_id: str, message: bytes, signature: bytes) -> bool:
        """Whether a hospital's key has signed a message."""
        if hospital_id not in self.keys:
            return False
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.keys[hospital_id].removeprefix(MARK)))
        try:
            public.verify(signature, message)
        except InvalidSignature:
            return False
        return True


def _is_public(text: object) -> bool:
    if not isinstance(text, str) or not text.startswith(MARK) or len(text) != len(MARK) + 64:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(text.removeprefix(MARK)))
    except ValueError:
        return False
    return True
