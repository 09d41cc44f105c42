"""Key agreement between two hospitals over a server that carries their messages, and letters that only one can open."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedplatform.core.errors import FedplatformError

KEY_BYTES = 32
NONCE = bytes(12)


class SealError(FedplatformError, ValueError):
    """A letter that was not sealed with this key, or not for this place."""


def agree(own: X25519PrivateKey, other: bytes, *, purpose: bytes) -> bytes:
    """The 32 bytes that both of two hospitals can derive and nobody else: X25519 (RFC 7748), then HKDF-SHA256.

    ``other`` is the other's public key, ``purpose`` what the bytes are for, the same on both sides and different for
    every use. Both public keys enter, so the bytes hang on who agreed and not only on what was agreed. Raises
    ValueError for a public key of low order, with which anybody could know the result.
    """
    shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    both = b"".join(sorted([own.public_key().public_bytes_raw(), other]))
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose + both).derive(shared)


def seal(key: bytes, content: bytes) -> bytes:
    """Encrypt with ChaCha20-Poly1305 (RFC 8439). A key seals one letter only, so the nonce is zero."""
    return ChaCha20Poly1305(key).encrypt(NONCE, content, None)


def unseal(key: bytes, letter: bytes) -> bytes:
    """Open what :func:`seal` sealed. Raises :class:`SealError` where the key or a single bit is another."""
    try:
        return ChaCha20Poly1305(key).decrypt(NONCE, letter, None)
    except InvalidTag:
        raise SealError("a letter was sealed with another key, for another place, or changed on its way") from None
