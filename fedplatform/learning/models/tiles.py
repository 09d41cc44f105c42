"""Large pictures cut into overlapping tiles, and the tiles blended to a picture again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Tiling:
    """Tiles of ``side`` x ``side`` pixels that overlap by at least ``overlap``, in even steps from edge to edge.

    Where tiles overlap, their weights rise and fall along a line and sum to 1, so no edge shows. A picture whose sides
    are no longer than a tile is one tile.
    """

    side: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 < self.overlap < self.side:
            raise ValueError(f"tiles need 0 < overlap < side, got {self}")

    def cuts(self, pictures: torch.Tensor) -> bool:
        """Whether pictures (n, c, h, w) are larger than a tile."""
        return max(pictures.shape[-2:]) > self.side

    def cut(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """The tiles of pictures (n, c, h, w), each (n, c, at most side, at most side), row by row."""
        return [pictures[..., rows, columns] for rows, columns in self._places(pictures.shape[-2:])]

    def blend(self, tiles: Sequence[torch.Tensor], height: int, width: int) -> torch.Tensor:
        """Pictures (n, c, height, width) out of tiles as :meth:`cut` makes them."""
        down, across = self._weights(height), self._weights(width)
        places = self._places((height, width))
        weights = [row[:, None] * column[None, :] for row in down for column in across]
        blended = torch.zeros_like(functional.pad(tiles[0], _around(*places[0], height, width)))
        for tile, weight, place in zip(tiles, weights, places, strict=True):
            blended = blended + functional.pad(tile * weight.to(tile), _around(*place, height, width))
        return blended

    def crop(self, pictures: Sequence[torch.Tensor], generator: torch.Generator) -> list[torch.Tensor]:
        """A tile of each scan at random, at the same place in each of ``pictures``, all (n, c, h, w)."""
        (n, _, height, width), side = pictures[0].shape, self.side
        tops = torch.randint(max(height - side, 0) + 1, (n,), generator=generator).tolist()
        lefts = torch.randint(max(width - side, 0) + 1, (n,), generator=generator).tolist()
        return [
            torch.stack([one[:, y : y + side, x : x + side] for one, y, x in zip(some, tops, lefts, strict=True)])
            for some in pictures
        ]

    def _places(self, shape: Sequence[int]) -> list[tuple[slice, slice]]:
        rows, columns = (
            [slice(start, min(start + self.side, length)) for start in self._starts(length)] for length in shape
        )
        return [(down, across) for down in rows for across in columns]

    def _starts(self, length: int) -> list[int]:
        if length <= self.side:
            return [0]
        steps = -(-(length - self.side) // (self.side - self.overlap))
        return [(length - self.side) * step // steps for step in range(steps + 1)]

    def _weights(self, length: int) -> list[torch.Tensor]:
        """How much each tile along an axis counts, pixel by pixel; together 1 everywhere."""
        starts, side = self._starts(length), min(self.side, length)
        total = torch.zeros(length)
        ramps = []
        for number, start in enumerate(starts):
            ramp = torch.ones(side)
            if number:
                shared = starts[number - 1] + side - start
                ramp[:shared] = torch.arange(1, shared + 1) / (shared + 1)
            if number + 1 < len(starts):
                shared = start + side - starts[number + 1]
                ramp[side - shared :] = torch.arange(shared, 0, -1) / (shared + 1)
            total[start : start + side] += ramp
            ramps.append(ramp)
        return [ramp / total[start : start + side] for start, ramp in zip(starts, ramps, strict=True)]


def _around(rows: slice, columns: slice, height: int, width: int) -> tuple[int, int, int, int]:
    """What is missing round a tile, as ``functional.pad`` counts it."""
    return columns.start, width - columns.stop, rows.start, height - rows.stop
