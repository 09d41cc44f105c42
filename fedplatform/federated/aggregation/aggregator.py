"""The one interface of every aggregation rule."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from fedplatform.core.messages import Aggregate, Evidence


@runtime_checkable
class Aggregator(Protocol):
    """Turns the n updates of a round into the server's step.

    An implementation is a frozen dataclass whose fields are its settings (``TrimmedMean(f=2)``). ``deltas`` is (n, d)
    float32, finite, one row a hospital in a fixed order, and is never written to; ``evidence`` is what else the server
    knows. Raises ValueError, with the rule and the numbers got, where n and f are infeasible. A rule that compares with
    the server's own update says so by a class attribute ``needs_root = True``; others are spared its cost. A rule that
    random updates cannot try out says where it cannot work by a method ``require(*, hospitals, has_root)``, which
    raises ValueError. One whose memory (``Aggregate.memory``) is more than plain values, arrays and tensors says by a
    tuple ``memory_kinds`` of which dataclasses it is made, so that it can be stored and restored.
    """

    def __call__(self, deltas: torch.Tensor, evidence: Evidence) -> Aggregate: ...
