"""Shamir's secret sharing: any ``threshold`` of the shares give the secret, fewer give nothing at all."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedplatform.core.errors import FedplatformError

PRIME = 2**521 - 1  # a Mersenne prime above every 32-byte secret
SECRET_BYTES = 32


class SharesError(FedplatformError, ValueError):
    """Shares that are too few, or that do not belong together."""


@dataclass(frozen=True)
class Share:
    """The value of the secret polynomial at a point, 1 <= point < PRIME."""

    point: int
    value: int


def split(secret: bytes, points: Sequence[int], *, threshold: int) -> tuple[Share, ...]:
    """One share of a 32-byte secret for each point (Shamir, CACM 1979).

    The secret is the constant of a random polynomial of degree ``threshold`` - 1 over the integers modulo ``PRIME``.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, got {len(secret)}")
    if not 1 <= threshold <= len(set(points)) == len(points) or not all(0 < point < PRIME for point in points):
        raise ValueError(f"sharing needs 1 <= threshold <= different points, got {threshold} and {list(points)}")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return tuple(Share(point, _value_at(point, coefficients)) for point in points)


def join(shares: Iterable[Share], *, threshold: int) -> bytes:
    """The secret again, by Lagrange interpolation at zero.

    Raises :class:`SharesError` below the threshold, and where the result is no secret of this length: shares of
    different secrets then meet, or one is false.
    """
    known = {share.point: share for share in shares}
    if len(known) < threshold:
        raise SharesError(f"{threshold} shares open the secret, got {len(known)}")
    chosen = list(known.values())[:threshold]
    total = 0
    for share in chosen:
        above, below = share.value, 1
        for other in chosen:
            if other is not share:
                above = above * other.point % PRIME
                below = below * (other.point - share.point) % PRIME
        total = (total + above * pow(below, -1, PRIME)) % PRIME
    if total >= 1 << 8 * SECRET_BYTES:
        raise SharesError("the shares do not belong to one secret")
    return total.to_bytes(SECRET_BYTES, "big")


def _value_at(point: int, coefficients: Sequence[int]) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value
