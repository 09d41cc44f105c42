"""The mask that a seed stands for: a stream cipher's output as ring elements."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

SEED_BYTES = 32
BLOCK = 1 << 15  # ring elements at a time, 256 KiB: what a core's own cache holds beside the vector's part


def add_mask(total: np.ndarray, seed: bytes, *, subtract: bool = False) -> None:
    """Add the mask of ``seed``, 32 bytes that no other mask comes from, to ring elements (d,) uint64, in place.

    The mask is the key stream of AES-256 in counter mode. The counter starts at zero, which is sound because every seed
    is used for one mask only.
    """
    stream = Cipher(AES256(seed), CTR(bytes(16))).encryptor()
    nothing = bytes(8 * BLOCK)
    room = bytearray(8 * BLOCK + 15)  # update_into wants room for a block of the cipher more
    key_stream = np.frombuffer(room, "<u8", count=BLOCK)
    change = np.subtract if subtract else np.add
    for start in range(0, len(total), BLOCK):
        part = total[start : start + BLOCK]
        stream.update_into(nothing[: 8 * len(part)], room)
        change(part, key_stream[: len(part)], out=part)
