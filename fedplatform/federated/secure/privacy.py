"""What the server may see of the updates: a choice of the experiment."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedplatform.federated.secure.masking import least_threshold


@dataclass(frozen=True)
class Grouped:
    """Sums of groups of at least ``size`` hospitals and nothing smaller, by secure aggregation; groups anew each round.

    Up to a third of a group may drop out; below that its sum stays closed. With ``size`` 2 nobody may.

    With ``noise`` above 0, updates are differentially private for each hospital as a whole: cut to the L2 norm ``clip``
    and under Gaussian noise, of which every hospital adds its part, so that any sum that opens carries at least
    ``noise`` times ``clip`` as standard deviation. ``fedplatform run`` says what epsilon that comes to.
    """

    size: int = 3
    clip: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"a group of one is a single update: Grouped needs size >= 2, got size={self.size}")
        if self.clip < 0 or self.noise < 0 or (self.noise > 0 and not self.clip > 0):
            raise ValueError(
                f"Grouped needs clip >= 0, noise >= 0 and a clip where there is noise, "
                f"got clip={self.clip}, noise={self.noise}"
            )

    def groups_of(self, hospitals: int) -> int:
        """Into how many groups so many hospitals are dealt."""
        return hospitals // self.size

    def noise_of_one(self, members: int) -> float:
        """Standard deviation of the noise that each of a group's members adds to every entry."""
        return self.noise * self.clip / math.sqrt(least_threshold(members))


PRIVACY: dict[str, type[Grouped]] = {"grouped": Grouped}
