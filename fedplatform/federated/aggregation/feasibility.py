"""What a rule refuses to do: fewer hospitals than its proof asks for, or none at all."""

from __future__ import annotations

from collections.abc import Sequence

from fedplatform.core.messages import Layer


def require_updates(rule: object, n: int) -> None:
    """Raise ValueError where a round has no update to aggregate."""
    if n < 1:
        raise ValueError(f"{type(rule).__name__} needs n >= 1, got n={n}")


def require_layers(rule: object, layers: Sequence[Layer], *, d: int) -> None:
    """Raise ValueError unless the layers of the model are known and make up its d coordinates."""
    size = sum(layer.size for layer in layers)
    if size != d:
        raise ValueError(f"{type(rule).__name__} needs evidence.layers of {d} coordinates in all, got {size}")


def require_hospitals(rule: object, *, n: int, f: int, at_least: int, formula: str) -> None:
    """Raise ValueError unless ``f >= 0`` is whole and ``n >= at_least``; ``formula`` is that bound as in the paper."""
    if not hasattr(f, "__index__"):
        raise ValueError(f"{type(rule).__name__} needs a whole number f, got f={f}")
    if f < 0:
        raise ValueError(f"{type(rule).__name__} needs f >= 0, got n={n}, f={f}")
    if n < at_least:
        raise ValueError(f"{type(rule).__name__} needs {formula}, got n={n}, f={f}")
