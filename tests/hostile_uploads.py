"""Uploads that nobody means well with: every one of them is to be refused with a 4xx and one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class HostileUpload:
    """The bytes of an upload and the name of what is wrong with it."""

    name: str
    data: bytes = field(repr=False)


def hostile_uploads() -> Iterator[HostileUpload]:
    """At least 200 of them, the same at every call."""
    yield HostileUpload("empty", b"")
