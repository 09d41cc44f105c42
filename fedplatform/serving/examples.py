"""Scans to try a server with: the federation's own, never a hospital's, as they are and attacked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER, INDEX = "examples", "examples.json"


@dataclass(frozen=True)
class Example:
    """A PNG file ``name`` of a class; ``attacked`` says that somebody who knows the classifier altered it."""

    name: str
    truth: str
    attacked: bool


def read_examples(folder: Path, hospital_id: str) -> tuple[Example, ...]:
    """What there is to try for a hospital, clean and attacked in turn; nothing where nothing was written."""
    try:
        return tuple(Example(**row) for row in json.loads((folder / hospital_id / INDEX).read_text()))
    except FileNotFoundError:
        return ()
