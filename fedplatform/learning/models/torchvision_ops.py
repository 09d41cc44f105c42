"""Lets timm import beside a CPU-only torch.

The registry's torchvision wheel is built for CUDA. Beside a CPU torch its compiled part does not load, and its Python
part then fails at import because two operators were never declared. Declaring their signatures is enough: nothing here
calls them (pytorch/vision issues 9077 and 9085).
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[torch.library.Library] = []  # a Library withdraws its declarations when it is collected


def import_timm() -> ModuleType:
    """Import timm, first declaring the torchvision operators that are missing (and only those)."""
    try:
        return importlib.import_module("timm")
    except (RuntimeError, ImportError):
        missing = [schema for name, schema in _SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in missing:
            library.define(schema)
        _libraries.append(library)
        return importlib.import_module("timm")


class CarriesNetworks:
    """What holds networks of timm or diffusers and is sent to other processes: there, timm is imported first."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (type(self),), self.__dict__


def _blank(kind: type) -> object:
    """An object without contents; pickle unpacks those, and imports what they need, only afterwards."""
    import_timm()
    return object.__new__(kind)
