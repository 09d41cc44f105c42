"""Monte Carlo Shapley values of a round's updates on the root set, truncated and guided (GTG-Shapley)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

Worth = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class ShapleyEstimate:
    """Shapley values (n,) of the hospitals, and how many coalitions were valued for them."""

    values: np.ndarray
    num_coalitions: int


@dataclass(frozen=True)
class GuidedShapley:
    """GTG-Shapley (Liu et al., ACM TIST 2022): permutations led by each hospital in turn, cut off when all is said.

    phi_k is the mean over permutations of v(those before k, and k) - v(those before k). A permutation ends as soon as
    the coalition is worth within ``tolerance`` of all together, relative to the largest gap seen. All permutations go
    in lock-step, so that their coalitions are valued together, and no coalition is valued twice. It costs at most
    ``permutations`` * n coalitions, each one pass over the root scans.

    The paper also skips a round in which all together are worth what nobody is. Here that is left out: attackers who
    bring the training to a halt would switch their own detection off.
    """

    permutations: int = 10
    tolerance: float = 0.02

    def __call__(self, worth: Worth, n: int, *, generator: torch.Generator) -> ShapleyEstimate:
        """Values of n hospitals; ``worth`` maps coalitions (m, n) bool to their worth (m,), where higher is better."""
        known: dict[bytes, float] = {}

        def valued(coalitions: np.ndarray) -> np.ndarray:
            new = {row.tobytes(): row for row in coalitions if row.tobytes() not in known}
            if new:
                known.update(zip(new, worth(np.stack(list(new.values()))).tolist(), strict=True))
            return np.array([known[row.tobytes()] for row in coalitions])

        nobody, everybody = valued(np.array([[False] * n, [True] * n]))
        orders = np.stack([self._order(number, n, generator) for number in range(self.permutations)])
        gains = np.zeros((self.permutations, n))
        joined = np.zeros((self.permutations, n), dtype=bool)
        before = np.full(self.permutations, nobody)
        going = np.arange(self.permutations)
        for place in range(n):
            joining = orders[going, place]
            joined[going, joining] = True
            after = valued(joined[going])
            gains[going, joining] = after - before[going]
            before[going] = after
            # The scale is of everything valued so far: with attackers about, all together may be worth next to nothing.
            scale = max(known.values()) - min(known.values())
            going = going[np.abs(everybody - after) > self.tolerance * scale]
            if not len(going):
                break
        return ShapleyEstimate(gains.mean(axis=0), len(known))

    @staticmethod
    def _order(number: int, n: int, generator: torch.Generator) -> np.ndarray:
        order = torch.randperm(n, generator=generator).numpy()
        leader = number % n
        return np.concatenate([[leader], order[order != leader]])
