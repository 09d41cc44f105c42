"""What one upload or file may cost, as options."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fedplatform.serving.refused import Limits

Command = TypeVar("Command", bound=Callable[..., Any])
PREFIX = "max_"
# By the field of Limits; its defaults are written here once more because a command starts without loading it.
OPTIONS = {
    "bytes": (256 * 2**20, "bytes of one file"),
    "pixels": (128_000_000, "pixels or voxels of one file, all frames and slices together"),
    "picture": (64_000_000, "pixels of one picture, frame or slice"),
    "scans": (512, "frames or pages of one file"),
    "slices": (16, "slices of a volume that are looked at"),
    "files": (64, "files of one request"),
    "header": (8 * 2**20, "bytes of one file before its pixels"),
}


def limit_options(*names: str) -> Callable[[Command], Command]:
    """Options ``--max-NAME`` for these fields of Limits."""

    def add(command: Command) -> Command:
        for name in reversed(names):
            default, meaning = OPTIONS[name]
            option = click.option(
                f"--max-{name}",
                f"{PREFIX}{name}",
                type=click.IntRange(min=1),
                default=default,
                show_default=True,
                metavar="N",
                help=f"most {meaning}",
            )
            command = option(command)
        return command

    return add


def limits_of(options: dict[str, int]) -> Limits:
    """What the options ask for; the defaults hold for those that a command does not have."""
    from fedplatform.serving.refused import Limits

    return Limits(**{name.removeprefix(PREFIX): value for name, value in options.items()})
