"""The fenced blocks of README and docs."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def block_with(page: str, language: str, word: str) -> str:
    """The first block of a page that holds a word."""
    return next(block for block in blocks(page, language) if word in block)
