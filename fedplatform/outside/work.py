"""What a hospital has to do now, as the server answers whoever asks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import numpy as np
from pydantic import Field

from fedplatform.data.splits import Role
from fedplatform.federated.hospital_state import Launch
from fedplatform.outside.envelope import Digest, Kind, RunId
from fedplatform.outside.strict import Strict

CHUNK = 2**20  # the most bytes that travel in one piece, either way

Count = Annotated[int, Field(ge=0, le=2**40)]


def launch_number(launch: Launch | None) -> int:
    """The number of a launch, 0 where none are counted."""
    return launch.number if launch else 0


@dataclass(frozen=True, eq=False)
class Order:
    """What the server asks of hospitals outside: an update from ``weights`` (d,), or predictions in ``roles``.

    Only those are meant that are ``asked``, None for all.
    """

    kind: Kind
    round_number: int
    weights: np.ndarray
    deadline_s: float
    roles: tuple[Role, ...] = ()
    launch: Launch | None = None
    asked: tuple[str, ...] | None = None


class Task(Strict):
    """An order as a hospital hears of it; ``base`` is the SHA-256 of the weights' ``size`` bytes.

    ``launch`` is the number of the server's launch and the round after which that went on, as in
    :class:`fedplatform.federated.hospital_state.Launch`; a hospital goes back with its server.
    """

    kind: Kind
    round: int = Field(ge=1, le=10**9)
    base: Digest
    size: Count
    roles: tuple[Role, ...]
    launch: tuple[Count, Count] | None
    seconds_left: float


class State(StrEnum):
    """What a hospital that asks is told."""

    WAIT = "wait"
    WORK = "work"
    FINISHED = "finished"


class Work(Strict):
    """The answer to a hospital that asks what there is to do."""

    state: State
    task: Task | None = None


class Hello(Strict):
    """What the server says to whoever knocks: its run, a number to be signed, and the version of its software."""

    run: RunId
    challenge: Digest
    version: Annotated[str, Field(max_length=40)]
