"""A user's own classes in other processes: they travel with their code, for nobody else has its file."""

from __future__ import annotations

import sys

import ray

from fedplatform.core.specification import plugin_modules

EVERYWHERE = ("fedplatform", "actors", "tune", "builtins", "__main__")  # packages that every process has


def by_value(*parts: object) -> None:
    """Let these objects' or classes' modules travel by value, and whatever was loaded from a user's file."""
    modules = [sys.modules[getattr(part, "__module__", None) or type(part).__module__] for part in parts]
    for module in (*modules, *plugin_modules):
        if module.__name__.partition(".")[0] not in EVERYWHERE:
            ray.cloudpickle.register_pickle_by_value(module)
