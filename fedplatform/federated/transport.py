"""How an update's numbers travel from a hospital to the server: as they are, packed without loss, or rounded to half.

Only updates are packed. The weights that the server sends out always travel as they are: an error in them would be in
every hospital and in every round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa

from fedplatform.core.errors import FedplatformError
from fedplatform.core.messages import Update

DELTA, EXPONENT = "delta", "exponent"

TransportName = Literal["exact", "lossless", "half"]
Parts = Mapping[str, np.ndarray]


class TransportError(FedplatformError, ValueError):
    """What came does not unpack to an update; the message is one sentence."""


class Transport(Protocol):
    """One way for the numbers (d,) float32 of an update; ``kinds`` are the arrays that travel for them, by name."""

    kinds: ClassVar[Mapping[str, Any]]
    words: ClassVar[str]

    def most_bytes(self, size: int) -> int:
        """The most bytes that the arrays of ``size`` numbers may have."""
        ...

    def pack(self, delta: np.ndarray) -> Parts:
        """The arrays that travel; NaN and infinities stay what they are, for the server is to see them."""
        ...

    def unpack(self, parts: Parts, *, size: int) -> np.ndarray:
        """The numbers again, float32. Raises :class:`TransportError` for what packs no ``size`` numbers.

        Arrays are of the right kinds, and else whatever somebody sent; a shape that is not packed is left as it is.
        """
        ...

    def received(self, delta: np.ndarray) -> np.ndarray:
        """What :meth:`unpack` makes of :meth:`pack`, bit for bit, for where nothing has to travel."""
        ...


@dataclass(frozen=True)
class Exact:
    """Four bytes a number, which another process on the same machine reads without a copy."""

    kinds: ClassVar[Mapping[str, Any]] = {DELTA: np.float32}
    words: ClassVar[str] = "float32"

    def most_bytes(self, size: int) -> int:
        return 4 * size

    def pack(self, delta: np.ndarray) -> Parts:
        return {DELTA: np.ascontiguousarray(delta)}

    def unpack(self, parts: Parts, *, size: int) -> np.ndarray:  # noqa: ARG002
        return parts[DELTA]

    def received(self, delta: np.ndarray) -> np.ndarray:
        return delta


@dataclass(frozen=True)
class Lossless:
    """The four bytes of every number in four planes, each packed by Zstandard: the same bits back.

    Mantissas are noise that nothing packs; sign and exponent are in one plane and repeat. So are the last bits, once
    updates are small: the difference of two close floats ends in zeros. Each plane is a frame of its own, for of bytes
    that are distributed otherwise the packer would make one poor code.
    """

    kinds: ClassVar[Mapping[str, Any]] = {f"{DELTA}.byte{place}": np.uint8 for place in range(4)}
    words: ClassVar[str] = "float32, packed"
    _codec: ClassVar[pa.Codec] = pa.Codec("zstd", compression_level=1)  # higher levels take longer and gain nothing

    def most_bytes(self, size: int) -> int:
        return len(self.kinds) * (size + size // 256 + 64)  # Zstandard's own bound for what does not pack at all

    def pack(self, delta: np.ndarray) -> Parts:
        planes = np.ascontiguousarray(delta, "<f4").reshape(-1, 1).view(np.uint8).T
        return {
            name: np.frombuffer(self._codec.compress(np.ascontiguousarray(plane)), np.uint8)
            for name, plane in zip(self.kinds, planes, strict=True)
        }

    def unpack(self, parts: Parts, *, size: int) -> np.ndarray:
        numbers = np.empty((size, len(self.kinds)), np.uint8)
        for place, name in enumerate(self.kinds):
            try:
                # A frame of more or fewer bytes is an error, and none of it is kept beyond the size that was due.
                plane = self._codec.decompress(np.ascontiguousarray(parts[name]), decompressed_size=size)
            except OSError as error:
                raise TransportError(f"{name} of an update unpacks to {size} bytes; what came does not") from error
            numbers[:, place] = np.frombuffer(plane, np.uint8)
        return numbers.view("<f4").reshape(size)

    def received(self, delta: np.ndarray) -> np.ndarray:
        return delta


@dataclass(frozen=True)
class Half:
    """IEEE half precision under a common power of two, which puts the largest entry just under 2^15.

    An entry is rounded by at most 2^-11 of itself if it is no more than 2^28 times smaller than the largest, and beyond
    that by at most 2^-39 of the largest. Only what would be rounded up to 2^128 becomes infinite.
    """

    kinds: ClassVar[Mapping[str, Any]] = {DELTA: np.float16, EXPONENT: np.int8}
    words: ClassVar[str] = "half precision, under a common power of two"

    def most_bytes(self, size: int) -> int:
        return 2 * size + 1

    def pack(self, delta: np.ndarray) -> Parts:
        largest = np.max(np.abs(delta), initial=0.0, where=np.isfinite(delta))
        # From 2^-127 downwards float32 itself has so few digits left that none is lost.
        exponent = max(int(np.frexp(largest)[1]) - 15, -127)
        return {DELTA: _times(delta, -exponent).astype(np.float16), EXPONENT: np.array([exponent], np.int8)}

    def unpack(self, parts: Parts, *, size: int) -> np.ndarray:  # noqa: ARG002
        if parts[EXPONENT].shape != (1,):
            raise TransportError(f"{EXPONENT} has shape (1,), got {parts[EXPONENT].shape}")
        return _times(parts[DELTA].astype(np.float32), parts[EXPONENT][0])

    def received(self, delta: np.ndarray) -> np.ndarray:
        return self.unpack(self.pack(delta), size=delta.size)


def _times(numbers: np.ndarray, exponent: int) -> np.ndarray:
    """Numbers times a power of two. What is not finite before or after stays in it, to be refused as such."""
    with np.errstate(over="ignore", invalid="ignore"):
        product: np.ndarray = numbers * np.ldexp(np.float32(1), exponent)
    return product


TRANSPORTS: dict[TransportName, Transport] = {"exact": Exact(), "lossless": Lossless(), "half": Half()}
EXACT = TRANSPORTS["exact"]


@dataclass(frozen=True, eq=False)
class Packed:
    """An update on its way: all of it but its numbers, and the arrays that travel for them."""

    rest: Update
    parts: Parts

    @classmethod
    def of(cls, update: Update, transport: Transport) -> Packed:
        """Pack an update."""
        return cls(replace(update, delta=np.empty(0, np.float32)), transport.pack(update.delta))

    def open(self, transport: Transport, *, size: int) -> Update:
        """The update of ``size`` numbers. Raises :class:`TransportError` where it is none."""
        travelled = sum(part.nbytes for part in self.parts.values())
        return replace(self.rest, delta=transport.unpack(self.parts, size=size), travelled=travelled)
