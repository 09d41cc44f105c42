"""PoisonedFL: fake hospitals without data or honest updates, which push all rounds the same way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch

from fedplatform.attacks.poisoning.attack import Situation
from fedplatform.attacks.poisoning.moments import dot

SURE = NormalDist().inv_cdf(0.99)


@dataclass(frozen=True)
class PoisonedFL:
    """PoisonedFL (Xie et al., CVPR 2025): the same random signs in every round, so that rounds do not cancel out.

    With the signs s drawn from ``seed``, h the server's last step and u what was sent last, an attacker sends
    c ||h|| k * s, where k = |h - u ||h|| / ||u||| brought to length 1: large where the step was not its own doing. c
    begins at ``factor``; every ``period`` rounds it shrinks to .7 of itself, at least .5, unless the model has moved
    along s more than chance explains (99 %). It looks at no scans and no honest update. In the first round there is no
    step yet, and it sends zeros; in the second, k is the same in all coordinates. Raises ValueError unless period >= 1.
    """

    factor: float = 8.0
    period: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ValueError(f"PoisonedFL needs period >= 1, got {self.period}")

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the own update (d,), of which only the shape is looked at, to what is sent (d,)."""
        step, memory = situation.previous_delta, situation.memory
        signs = torch.randint(0, 2, own.shape, generator=torch.Generator().manual_seed(self.seed)).to(own.dtype) * 2 - 1
        moved = memory.get("moved", torch.zeros_like(own)) + step
        factor = float(memory.get("factor", torch.tensor(self.factor)))
        if situation.round_number % self.period == 0:
            if not _follows(moved, signs):
                factor = max(0.7 * factor, 0.5)
            moved = torch.zeros_like(own)
        length = _length(step)
        sent = (factor * length * _magnitudes(step, memory.get("sent")) * signs).to(own.dtype)
        memory |= {"moved": moved, "factor": torch.tensor(factor), "sent": sent.clone()}
        return sent


def _follows(moved: torch.Tensor, signs: torch.Tensor) -> bool:
    """Whether a vector has these signs more often than chance explains, under a binomial distribution."""
    d = len(signs)
    return int((moved.sign() == signs).sum()) > d / 2 + SURE * math.sqrt(d) / 2


def _magnitudes(step: torch.Tensor, sent: torch.Tensor | None) -> torch.Tensor:
    """How much each coordinate is pushed: (d,), of length 1."""
    even = torch.full_like(step, 1 / math.sqrt(max(len(step), 1)))
    if sent is None or not _length(sent):
        return even
    rest = (step - sent * (_length(step) / _length(sent))).abs()
    return rest / _length(rest) if _length(rest) else even


def _length(vector: torch.Tensor) -> float:
    double = vector.double()
    return math.sqrt(dot(double, double))
