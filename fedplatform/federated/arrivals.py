"""What arrives at the server in a round: each update is checked and written into its row at once, and let go of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedplatform.core.coordinates import row_blocks
from fedplatform.core.mapped import RELEASE_BYTES, release, scratch
from fedplatform.core.messages import HospitalState, Reply, Update
from fedplatform.core.usable import unusable

NUMBERS_ELSEWHERE = np.empty(0, np.float32)  # stands for the numbers of an update that are in a row of the table
TOO_FEW = "an update comes from at least one scan, in a batch of two or more"  # how that complaint begins
MOST_SCANS = 10**9  # that a hospital may claim; a sum of such claims stays far below 2**63


class Arrivals:
    """The replies of a round, and the numbers of their updates in one table of as many rows as there are hospitals.

    Updates may come in any order; their rows are in the order of ``hospital_ids``. A table that is too large for memory
    lies in a file (:mod:`fedplatform.core.mapped`), and then the server's memory does not grow with the hospitals.
    """

    def __init__(self, hospital_ids: Sequence[str], *, num_shared: int, size: int, round_number: int) -> None:
        self._round_number = round_number
        self._size = size
        self._rows = {name: row for row, name in enumerate(hospital_ids)}
        self._deltas = scratch(len(hospital_ids), num_shared)
        self._statistics = scratch(len(hospital_ids), size - num_shared)
        self._replies: dict[str, Reply] = {}
        self._unreleased = 0

    def add(self, reply: Reply) -> None:
        """Take a reply; what is not an update of this round and model becomes a refusal, before any rule can see it."""
        update, name = reply.update, reply.hospital_id
        if update is not None:
            complaint = malformation(update, size=self._size, round_number=self._round_number)
            if not complaint and update.hospital_id != name:
                complaint = f"an update is of its sender, got one of {update.hospital_id!r}"
            if complaint:
                reply = Reply(name, HospitalState.MALFORMED, None, complaint)
            else:
                self._write(self._rows[name], update.delta)
                reply = replace(reply, update=replace(update, delta=NUMBERS_ELSEWHERE))
        self._replies[name] = reply

    @property
    def replies(self) -> list[Reply]:
        """All replies in the order of the hospitals, their updates without numbers."""
        return [self._replies[name] for name in self._rows]

    @property
    def updates(self) -> list[Update]:
        """The usable updates in order, without numbers."""
        return [reply.update for reply in self.replies if reply.update is not None]

    @property
    def refused(self) -> int:
        """How many hospitals sent what no honest training gives: NaN, another shape; not who had too few scans."""
        return sum(
            reply.state is HospitalState.MALFORMED and not reply.reason.startswith(TOO_FEW)
            for reply in self._replies.values()
        )

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the usable updates, in order: (n, num_shared), and what is left of them, (n, rest)."""
        usable = [row for name, row in self._rows.items() if self._replies[name].update is not None]
        for table in (self._deltas, self._statistics):
            for rows in row_blocks(table[: len(usable)]):
                for row in range(rows.start, rows.stop):
                    if usable[row] != row:  # it moves up over rows that are not needed any more
                        table[row] = table[usable[row]]
        return self._deltas[: len(usable)], self._statistics[: len(usable)]

    def _write(self, row: int, delta: np.ndarray) -> None:
        shared = self._deltas.shape[1]
        self._deltas[row], self._statistics[row] = delta[:shared], delta[shared:]
        self._unreleased += delta.nbytes
        if self._unreleased >= RELEASE_BYTES:
            release(self._deltas)
            release(self._statistics)
            self._unreleased = 0


def malformation(update: Update, *, size: int, round_number: int) -> str:
    """What is wrong with the form of an update, in words; empty where nothing is."""
    delta = update.delta
    if not isinstance(delta, np.ndarray) or delta.dtype != np.float32:
        return f"an update is a float32 array, got {getattr(delta, 'dtype', type(delta).__name__)}"
    if delta.shape != (size,):
        return f"an update has shape ({size},), got {delta.shape}"
    if update.round_number != round_number:
        return f"an update for round {round_number} was due, got one for round {update.round_number}"
    if not isinstance(update.num_examples, int) or update.num_examples < 1:
        claimed = f"num_examples={update.num_examples!r}"
        return f"{TOO_FEW}, got {claimed}"
    if update.num_examples > MOST_SCANS:
        return f"an update comes from at most {MOST_SCANS} scans, got num_examples={update.num_examples}"
    figures: dict[str, object] = {"train_loss": update.train_loss, "seconds": update.seconds}
    for name, told in figures.items():
        if not isinstance(told, float | int):
            return f"{name} is a number, got a {type(told).__name__}"
    return unusable(delta)
