"""The drawing in docs/architecture.md is true: no import runs against it, and only the outer packages know Ray."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("fedplatform", "actors", "tune")
MAY_IMPORT_RAY = ("actors", "tune", "cli")


def layers() -> dict[str, int]:
    """Each package with the number of its layer: ``core < data, attacks < learning`` and so on."""
    block = re.search(r"```layers\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL)
    assert block is not None, "docs/architecture.md holds no ```layers block"
    return {name.strip(): depth for depth, level in enumerate(block[1].split("<")) for name in level.split(",")}


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "fedplatform" and len(parts) > 1 else parts[0]


def sources() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), file


def imported_by(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield str(node.module)


def test_each_package_imports_only_from_the_layers_below_it() -> None:
    depth = layers()
    for module, file in sources():
        here = package_of(module)
        if here in ("fedplatform", "__main__"):
            continue
        assert here in depth, f"{module} stands nowhere in docs/architecture.md"
        for name in imported_by(file):
            there = package_of(name)
            if name.split(".")[0] in PACKAGES and there != here:
                assert depth[there] < depth[here], f"{module} imports {name}: an arrow against docs/architecture.md"


def test_only_actors_tune_and_the_command_line_import_ray() -> None:
    for module, file in sources():
        if package_of(module) not in MAY_IMPORT_RAY:
            assert "ray" not in {name.split(".")[0] for name in imported_by(file)}, f"{module} imports Ray"


def test_every_package_in_the_drawing_exists_and_the_root_stays_small() -> None:
    packages = {package_of(module) for module, _ in sources()}
    assert set(layers()) <= packages
    names = {path.name for path in (ROOT / "fedplatform").iterdir() if path.name != "__pycache__"}
    assert len(names - {"__init__.py", "__main__.py", "py.typed"}) <= 12
