"""Objects as one line of text and back: ``trimmed_mean(f=2)``, ``nnm+krum``, ``my_rules.py:Softmax(temperature=3)``.

The object is the configuration; the text is only its name on a command line or in a YAML file. A name is looked up in
an explicit table, or imported from the user's own file or package, so nothing has to be registered.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fedplatform.core.errors import FedplatformError

plugin_modules: list[ModuleType] = []
"""Modules loaded from a user's file: no other process could import them, so their classes travel by value."""


def plugin_files() -> list[Path]:
    """The files of the user's own that were loaded so far and are still there."""
    files = {Path(inspect.getfile(module)).resolve() for module in plugin_modules}
    return sorted(file for file in files if file.is_file())


class SpecificationError(FedplatformError, ValueError):
    """A line of text that names no object that can be built."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'median'?`` for a mistyped name, or nothing where nothing is near."""
    lower = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), list(lower), n=1)
    return f"; did you mean {lower[close[0]]!r}?" if close else ""


def build(text: str, table: Mapping[str, Callable[..., Any]], *, what: str, given: Mapping[str, Any]) -> Any:
    """Build the object that ``text`` names.

    ``table`` maps names to classes, ``what`` says in errors what was looked for, ``given`` holds values for settings
    that the class needs and the text leaves out (``f``). Raises :class:`SpecificationError`, naming the nearest name.
    """
    head, call = _split(text, what=what)
    if ":" in head:
        factory = _imported(head, what=what)
    elif head in table:
        factory = table[head]
    else:
        raise SpecificationError(f"unknown {what} {head!r}{nearest(head, table) or '; known: ' + ', '.join(table)}")
    if not inspect.isclass(factory):
        if call:
            raise SpecificationError(f"{what} {head!r} is no class and takes no settings, got {text!r}")
        return factory
    settings = inspect.signature(factory).parameters
    for key in call:
        if key not in settings:
            raise SpecificationError(
                f"{what} {head!r} has no setting {key!r}"
                + (nearest(key, settings) or f"; its settings: {', '.join(settings) or 'none'}")
            )
        if _misses_whole_number(call[key], settings[key].annotation):
            raise SpecificationError(f"{what} {text!r}: {key} is a whole number, got {call[key]!r}")
    lacking = {
        key: given[key]
        for key, setting in settings.items()
        if key in given and key not in call and setting.default is inspect.Parameter.empty
    }
    try:
        return factory(**call, **lacking)
    except (TypeError, ValueError) as error:
        raise SpecificationError(f"{what} {text!r}: {error}") from error


def name_of(value: object, table: Mapping[str, Callable[..., Any]]) -> str:
    """The name of an object without its settings: its key in the table, or where it is imported from."""
    kind = value if inspect.isfunction(value) else type(value)
    for name, factory in table.items():
        if factory is kind:
            return name
    module = sys.modules[kind.__module__]
    origin = Path(inspect.getfile(module)).resolve() if module in plugin_modules else kind.__module__
    return f"{origin}:{kind.__qualname__}"


def slug_of(value: object, table: Mapping[str, Callable[..., Any]]) -> str:
    """A short name for result tables and file names: the key in the table, or the class's own name."""
    return name_of(value, table).rpartition(":")[2]


def describe(value: object, table: Mapping[str, Callable[..., Any]]) -> str:
    """The text from which :func:`build` makes an equal object, defaults left out."""
    name = name_of(value, table)
    if not dataclasses.is_dataclass(value):
        return name
    settings = [
        f"{field.name}={getattr(value, field.name)!r}"
        for field in dataclasses.fields(value)
        if field.init and getattr(value, field.name) != _default(field)
    ]
    return f"{name}({', '.join(settings)})" if settings else name


def _default(field: dataclasses.Field[Any]) -> object:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _misses_whole_number(value: object, annotation: object) -> bool:
    """Whether a setting is declared as a whole number and this is none: 2.7 would be cut to 2 somewhere, or crash."""
    if annotation in (int, "int"):
        return not isinstance(value, int) or isinstance(value, bool)
    return annotation in (int | None, "int | None") and value is not None and _misses_whole_number(value, int)


def _split(text: str, *, what: str) -> tuple[str, dict[str, Any]]:
    head, bracket, rest = text.strip().partition("(")
    if not bracket:
        return head, {}
    try:
        tree = ast.parse(f"_({rest}", mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args or any(word.arg is None for word in tree.keywords):
            raise ValueError("settings are written name=value")
        return head, {str(word.arg): _value(word.value) for word in tree.keywords}
    except (SyntaxError, ValueError) as error:
        raise SpecificationError(f"cannot read {what} {text!r}: write it like 'trimmed_mean(f=2)' ({error})") from error


def _value(written: ast.expr) -> Any:
    """A Python literal; a bare word is text, for inner quotation marks are a nuisance in a shell."""
    return written.id if isinstance(written, ast.Name) else ast.literal_eval(written)


def _imported(head: str, *, what: str) -> Callable[..., Any]:
    origin, _, name = head.rpartition(":")
    module = _module_of_file(Path(origin), what=what) if origin.endswith(".py") else _module(origin, what=what)
    found = getattr(module, name, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise SpecificationError(f"{origin} defines no {what} called {name!r}{nearest(name, known)}")
    return found  # type: ignore[no-any-return]


def _module(name: str, *, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SpecificationError(f"cannot import {what} from {name!r}: {error}") from error


@contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    """Let a user's file import others beside it, as a script does; they travel by value, as it does itself."""
    known = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - known:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and Path(origin).resolve().is_relative_to(folder):
                plugin_modules.append(sys.modules[name])


def _module_of_file(path: Path, *, what: str) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise SpecificationError(f"no file {path} to import {what} from")
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            with _neighbours(path.parent):
                spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise SpecificationError(f"cannot import {what} from {path}: {error}") from error
        plugin_modules.append(module)
    return sys.modules[name]
