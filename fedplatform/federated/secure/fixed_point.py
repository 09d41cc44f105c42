"""Real numbers as integers modulo 2^64: the ring in which masks cancel exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.core.errors import FedplatformError

RING_BITS = 64


class RangeError(FedplatformError, ValueError):
    """A number too large for the sum to stay inside the ring."""


@dataclass(frozen=True)
class FixedPoint:
    """Multiples of a ``step`` of 2^-fraction_bits, as unsigned integers modulo 2^64 (two's complement).

    64 bits and not 32, though it doubles the traffic: in 32 a choice would be due between the variances of batch
    normalisation, which reach hundreds, and the last rounds' updates, which are of the order of 1e-6.
    """

    fraction_bits: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.fraction_bits < RING_BITS - 2:
            raise ValueError(f"FixedPoint needs 0 < fraction_bits < {RING_BITS - 2}, got {self.fraction_bits}")

    @property
    def step(self) -> float:
        """The distance of two neighbouring numbers; encoding rounds by at most half of it."""
        return 2.0**-self.fraction_bits

    def largest(self, summands: int) -> float:
        """What an entry must stay below for a sum of so many to be told from its own overflow, a bit to spare."""
        return self.step * 2.0 ** (RING_BITS - 2) / summands

    def encode(self, values: np.ndarray, *, summands: int) -> np.ndarray:
        """Floating-point numbers (d,) as ring elements (d,) uint64, to be added to those of ``summands`` - 1 others.

        Raises :class:`RangeError` for an entry that is not finite, or so large that the sum could wrap around: one that
        did would look like any other.
        """
        scaled = np.rint(values.astype(np.float64) / self.step)
        fits = np.abs(scaled) * self.step < self.largest(summands)  # false for NaN, too
        if not fits.all():
            raise RangeError(
                f"a sum of {summands} takes entries below {self.largest(summands):.3g}, "
                f"got {values[~fits][0]:.3g} and {int((~fits).sum()) - 1} more of {len(values)}"
            )
        return scaled.astype(np.int64).view(np.uint64)

    def decode(self, total: np.ndarray) -> np.ndarray:
        """Ring elements (d,) uint64 as float64 (d,); exact below 2^53 steps, to float64's own precision above."""
        return total.view(np.int64).astype(np.float64) * self.step
