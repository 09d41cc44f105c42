"""How long a round waits for hospitals: as long as was asked for, or as long as the rounds seen so far suggest."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_S = 1800.0  # while nobody has answered yet: a hospital may have to open a large shard first
LEAST_S = 120.0  # a busy machine is no absent hospital
MARGIN = 10.0  # times the longest answer so far


@dataclass
class Deadline:
    """Seconds that hospitals have for an answer: ``given_s``, or, where that is 0, what fits the answers so far.

    >>> deadline = Deadline()
    >>> deadline.seconds
    1800.0
    >>> deadline.heard(12.0)
    >>> deadline.seconds
    120.0
    """

    given_s: float = 0.0
    longest_s: float = 0.0

    @property
    def seconds(self) -> float:
        """How long to wait now."""
        if self.given_s:
            return self.given_s
        return max(LEAST_S, MARGIN * self.longest_s) if self.longest_s else FIRST_S

    def heard(self, seconds: float) -> None:
        """Note that an answer took so long."""
        self.longest_s = max(self.longest_s, seconds)
