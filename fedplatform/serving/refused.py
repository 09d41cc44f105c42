"""What an upload may cost, and what is said to somebody whose upload is not taken."""

from __future__ import annotations

from dataclasses import dataclass

from fedplatform.core.errors import FedplatformError

MEBIBYTE = 2**20
LONGEST_SIDE = 32_768  # pixels; the weights of a resize grow with the longest side, however few pixels there are


@dataclass(frozen=True)
class Limits:
    """What one upload may cost: its ``bytes``, the ``pixels`` it decodes to, and how many ``scans`` it holds."""

    bytes: int = 32 * MEBIBYTE
    pixels: int = 32_000_000  # at worst, a window function over 16 bits, 45 bytes each while they are decoded
    scans: int = 64

    def check(self, *shape: int, pictures: int = 1) -> None:
        """Refuse a picture or volume of such a ``shape``, ``pictures`` times over, before it is decoded."""
        if min(shape) < 1 or pictures < 1:
            raise Refused(422, "The file says that it holds no pixels.")
        if max(shape) > LONGEST_SIDE:
            raise Refused(413, f"The picture is too large: a side may have {LONGEST_SIDE:,} pixels.")
        pixels = pictures
        for side in shape:
            pixels *= side
        if pixels > self.pixels:
            raise Refused(413, f"The picture is too large: an upload may have {self.pixels:,} pixels.")


class Refused(FedplatformError):  # noqa: N818 - it is an answer, and nothing went wrong in the server
    """An upload that is not taken: an HTTP ``status`` from 400 to 499 and one ``sentence`` for the person who sent it.

    The sentence names neither a path nor anything that the upload holds.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
