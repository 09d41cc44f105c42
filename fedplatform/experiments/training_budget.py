"""How long a first run takes on one CPU core, and what to leave out where that is more than a coffee break."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUNDS, FEWEST_ROUNDS = 6, 2
BUDGET_S = 300.0  # of one CPU core; twice as much where two rounds need it
# CPU milliseconds for one training scan, by the side at which the network sees it; measured on one core, and rounded.
PRETRAINED_MS = {48: 5.0, 64: 6.5, 96: 10.0, 128: 20.0}  # efficientnet_lite0 without its frozen first layers
SMALL_MS = {32: 1.0, 48: 2.2, 64: 4.0}  # small_cnn(width=32)
EVALUATION = 0.1  # of the time for training


@dataclass(frozen=True)
class TrainingPlan:
    """The side at which a network sees a scan, rounds, and the share of all scans; ``ms`` for each of them."""

    side: int
    rounds: int
    share: float
    ms: float

    def words(self, scans: int) -> str:
        """How long that takes with so many training scans in a round."""
        minutes = self.rounds * self.share * scans * self.ms * (1 + EVALUATION) / 60_000
        about = "under a minute" if minutes < 0.75 else f"about {minutes:.0f} min"
        return f"{about} on one CPU core" + ("; fewer, for there are many scans" if self.rounds < ROUNDS else "")


def plan_training(*, pretrained: bool, native: int, scans: int) -> TrainingPlan:
    """The largest side that six rounds of ``scans`` allow in the budget; else fewer rounds, and then fewer scans.

    A side is at most twice the ``native`` one of the pictures, unless there is no smaller.

    >>> plan_training(pretrained=True, native=128, scans=4_000)
    TrainingPlan(side=96, rounds=6, share=1.0, ms=10.0)
    >>> plan_training(pretrained=True, native=32, scans=45_000)
    TrainingPlan(side=48, rounds=2, share=1.0, ms=5.0)
    """
    costs = PRETRAINED_MS if pretrained else SMALL_MS
    smallest, budget = min(costs), 1000 * BUDGET_S
    for side in sorted(costs, reverse=True):
        if side <= max(smallest, 2 * native) and ROUNDS * scans * costs[side] <= budget:
            return TrainingPlan(side, ROUNDS, 1.0, costs[side])
    ms = costs[smallest]
    rounds = int(np.clip(budget // (scans * ms), FEWEST_ROUNDS, ROUNDS))
    return TrainingPlan(smallest, rounds, min(1.0, 2 * budget / (rounds * scans * ms)), ms)
