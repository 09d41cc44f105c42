"""Numbers and names as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percent(value: float) -> str:
    """A share in percent with one decimal, a dash where it is unknown."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}%"


def number(value: float) -> str:
    """Three significant digits, a dash where it is unknown."""
    return "–" if math.isnan(value) else f"{value:.3g}"


def share(value: float) -> str:
    """A number for CSS, 0 where there is none."""
    return "0" if math.isnan(value) else f"{value:.3f}"


def count(number: int, noun: str) -> str:
    """``1 round``, ``2 rounds``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listing(names: Sequence[str], *, most: int = 6) -> str:
    """``a, b and c``; beyond ``most`` names, how many others there are."""
    shown = [*names[:most], *([f"{len(names) - most} others"] if len(names) > most else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def shorten(name: str, *, most: int = 22) -> str:
    """No more than ``most`` characters of a name."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
