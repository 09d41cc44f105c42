"""What this machine can do on one thread: how fast it moves bytes and multiplies matrices, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

STREAMED = 1 << 28  # bytes; several times any cache
SIDE = 1536  # of the matrices
REPEATS = 7


@dataclass(frozen=True)
class Machine:
    """Bytes a second that are read, or read and written by a copy (both counted), and float32 operations a second."""

    read: float
    copied: float
    matrix: float

    def limit(self, *, read: float, written: float, operations: float = 0.0) -> float:
        """Seconds that a work takes at least: its bytes or its multiplications, whichever takes longer."""
        moved = (read + written) / max(self.copied, self.read) if written else read / self.read
        return max(moved, operations / self.matrix)


def measured() -> Machine:
    """The best of several tries, for the others were disturbed."""
    torch.set_num_threads(1)
    source = torch.ones(STREAMED // 4)
    target = torch.zeros(STREAMED // 4)
    a, b = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    halves = source.view(2, -1)
    return Machine(
        read=STREAMED / best(lambda: torch.dot(halves[0], halves[1])),
        copied=2 * STREAMED / best(lambda: target.copy_(source)),
        matrix=2 * SIDE**3 / best(lambda: a @ b),
    )


def best(work: Callable[[], object]) -> float:
    """The shortest of ``REPEATS`` runs, seconds of this thread's CPU."""
    work()
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return float(np.min(seconds))
