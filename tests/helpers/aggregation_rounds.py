"""Rounds of made-up updates for the aggregation tests: honest but unlike hospitals, and attackers among them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from fedplatform.core.messages import Aggregate, Evidence, Layer
from fedplatform.federated.aggregation import Aggregator


@dataclass(frozen=True, eq=False)
class Round:
    deltas: np.ndarray
    evidence: Evidence
    f: int

    @property
    def rows(self) -> np.ndarray:
        return self.deltas.astype(np.float64)

    @property
    def root(self) -> np.ndarray:
        assert self.evidence.root_delta is not None
        return self.evidence.root_delta

    def apply(self, rule: Aggregator) -> Aggregate:
        self.evidence.generator.manual_seed(0)
        return rule(self.deltas, self.evidence)


def a_round(seed: int, *, n: int = 11, f: int = 2, d: int = 60) -> Round:
    """A common step, and around it a spread of a different size for each hospital."""
    random = np.random.default_rng(seed)
    step = random.normal(size=d) + 0.5
    deltas = step + random.normal(size=(n, d)) * random.uniform(0.3, 1.0, size=(n, 1))
    return Round(
        deltas.astype(np.float32),
        Evidence(
            hospital_ids=tuple(f"hospital-{i}" for i in range(n)),
            num_examples=random.integers(10, 500, size=n),
            previous_delta=(step / 2).astype(np.float32),
            generator=torch.Generator(),
            root_delta=(step + 0.3 * random.normal(size=d)).astype(np.float32),
            weights=(step + random.normal(size=d)).astype(np.float32),
            layers=layers_of(d),
        ),
        f,
    )


def layers_of(d: int) -> tuple[Layer, ...]:
    """The layers of a network with d >= 20 weights, four features and three classes."""
    return (
        Layer("body.weight", (d - 17, 1)),
        Layer("body.bias", (2,)),
        Layer("last.weight", (3, 4)),
        Layer("last.bias", (3,)),
    )


def with_attackers(honest: Round, *, scale: float = 1e6) -> Round:
    """The first f hospitals send the opposite of the root update, a million times as large."""
    deltas = honest.deltas.copy()
    deltas[: honest.f] = -scale * honest.root
    return replace(honest, deltas=deltas)
