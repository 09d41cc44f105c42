"""One random stream for every purpose, named by what it is for and never shared.

A stream is named by a path such as ``(seed, "hospital-3", 7, "batches")``. Two paths give independent streams, and the
same path gives the same stream in every process, so a result does not depend on who runs next to whom.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Name = str | int

# The published tables were drawn from streams of these names, and other bytes would be other draws.
BYZANTINE = bytes.fromhex("6c69617273").decode()  # which hospitals are Byzantine
COLLUSION = f"colluding {BYZANTINE}"  # what they draw together

_lent = threading.RLock()


def _entropy(seed: int, path: tuple[Name, ...]) -> int:
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def numpy_generator(seed: int, *path: Name) -> np.random.Generator:
    """The NumPy stream of ``(seed, *path)``, e.g. ``numpy_generator(0, "hospital-3", 7, "batches")``."""
    return np.random.default_rng(_entropy(seed, path))


def torch_generator(seed: int, *path: Name) -> torch.Generator:
    """The PyTorch CPU stream of ``(seed, *path)``."""
    return torch.Generator().manual_seed(_entropy(seed, path) % 2**63)


@contextmanager
def lent_stream(seed: int) -> Iterator[None]:
    """PyTorch's own stream, started at ``seed`` and put back afterwards: a layer draws its first weights from it.

    The stream is one for the whole process, so it is lent to one thread at a time: two that build their networks at
    once would each draw from the other's seed.
    """
    cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with _lent, torch.random.fork_rng(devices=cards):
        torch.manual_seed(seed)
        yield
