"""What an upload may cost, and what is said to somebody whose upload is not taken."""

from __future__ import annotations

from dataclasses import dataclass

from fedplatform.core.errors import FedplatformError

MEBIBYTE = 2**20
LONGEST_SIDE = 32_768  # pixels; the weights of a resize grow with the longest side, however few pixels there are


@dataclass(frozen=True)
class Limits:
    """What one upload may cost; the defaults let a CT of 512 x 512 x 400 and a mammogram pass.

    Its ``bytes``; the ``pixels`` it decodes to, all frames or slices together, and those of one ``picture``; how many
    ``scans`` it holds, and how many ``slices`` of a volume are looked at; the ``files`` of one request; the bytes of a
    ``header``.
    """

    bytes: int = 256 * MEBIBYTE
    pixels: int = 128_000_000
    picture: int = 64_000_000  # at worst, four channels of 16 bits, 20 bytes a pixel while they are decoded
    scans: int = 512
    slices: int = 16
    files: int = 64
    header: int = 8 * MEBIBYTE

    def check(self, *shape: int, pictures: int = 1) -> None:
        """Refuse a picture or volume of such a ``shape``, ``pictures`` times over, before it is decoded."""
        if min(shape) < 1 or pictures < 1:
            raise Refused(422, "The file says that it holds no pixels.")
        if max(shape) > LONGEST_SIDE:
            raise Refused(413, f"The picture is too large: a side may have {LONGEST_SIDE:,} pixels.")
        one = shape[0] * shape[1]
        if one > self.picture:
            raise Refused(413, f"The picture is too large: one may have {self.picture:,} pixels.")
        pixels = pictures * one
        for side in shape[2:]:
            pixels *= side
        if pixels > self.pixels:
            raise Refused(413, f"The picture is too large: an upload may have {self.pixels:,} pixels.")

    @property
    def inflated(self) -> int:
        """Bytes that a compressed upload may become: as floats, a volume is twice as long as in 16 bits."""
        return 2 * self.bytes


class Refused(FedplatformError):  # noqa: N818 - it is an answer, and nothing went wrong in the server
    """An upload that is not taken: an HTTP ``status`` from 400 to 499 and one ``sentence`` for the person who sent it.

    The sentence names neither a path nor anything that the upload holds.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
