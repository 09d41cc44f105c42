"""Values as named arrays and a plain tree, and back: how a rule's memory is stored without pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from fedplatform.core.errors import FedplatformError

Tree = Any  # what JSON holds
Arrays = dict[str, np.ndarray]


class NotStorableError(FedplatformError, TypeError):
    """A value holds something that is no plain value, no array and of no declared kind."""


def to_plain(value: object, *, kinds: Sequence[type], name: str) -> tuple[Tree, Arrays]:
    """A value as a tree for JSON and the arrays in it, each called after its place, ``name`` in front.

    A value is None, a bool, int, float, str, NumPy array or scalar, PyTorch tensor, a list, tuple or dict (keys are
    text) of values, or a dataclass in ``kinds`` whose fields are values. Raises :class:`NotStorableError` for others.
    """
    arrays: Arrays = {}

    def apart(part: object, place: str) -> Tree:
        if part is None or type(part) in (bool, int, float, str):
            return part
        if isinstance(part, np.ndarray | np.generic | torch.Tensor):
            array = part.detach().cpu().numpy() if isinstance(part, torch.Tensor) else np.asarray(part)
            if array.dtype.kind not in "biuf":
                raise NotStorableError(f"{place} is an array of {array.dtype}, and arrays are stored that hold numbers")
            while place in arrays:  # {"a/b": x} beside {"a": {"b": y}}
                place += "'"
            arrays[place] = array
            form = {torch.Tensor: "tensor", np.ndarray: "array"}.get(type(part), "scalar")
            return {form: place}
        if type(part) is list:
            return [apart(item, f"{place}/{number}") for number, item in enumerate(part)]
        if type(part) is tuple:
            return {"tuple": [apart(item, f"{place}/{number}") for number, item in enumerate(part)]}
        if type(part) is dict and all(type(key) is str for key in part):
            return {"dict": {key: apart(item, f"{place}/{key}") for key, item in part.items()}}
        if type(part) in kinds and is_dataclass(part):
            held = {f.name: apart(getattr(part, f.name), f"{place}/{f.name}") for f in fields(part)}
            return {"kind": type(part).__name__, "fields": held}
        raise NotStorableError(f"{place} is a {type(part).__name__}, and nobody said how that is stored")

    return apart(value, name), arrays


def from_plain(tree: Tree, arrays: Mapping[str, np.ndarray], *, kinds: Sequence[type]) -> Any:
    """The value that :func:`to_plain` took apart, bit for bit; raises KeyError or ValueError for any other tree."""
    known = {kind.__name__: kind for kind in kinds}

    def together(part: Tree) -> Any:
        if isinstance(part, list):
            return [together(item) for item in part]
        if not isinstance(part, dict):
            return part
        match part:
            case {"tensor": place}:
                return torch.from_numpy(arrays[place]).clone()
            case {"array": place}:
                return arrays[place].copy()
            case {"scalar": place}:
                return arrays[place][()]
            case {"tuple": items}:
                return tuple(together(item) for item in items)
            case {"dict": items}:
                return {key: together(item) for key, item in items.items()}
            case {"kind": kind, "fields": held}:
                return known[kind](**{name: together(item) for name, item in held.items()})
        raise ValueError(f"no stored value looks like {part!r}")

    return together(tree)
