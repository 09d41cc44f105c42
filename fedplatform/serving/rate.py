"""How often a key may ask: a token bucket."""

from __future__ import annotations

import math


class TokenBucket:
    """Lets ``burst`` scans through at once and ``rate_per_s`` a second in the long run.

    It holds its own state and no clock: whoever asks says what time it is, in seconds that never run backwards
    (``time.monotonic``; a step back counts as none). Raises ValueError unless both numbers are positive.
    """

    def __init__(self, rate_per_s: float, burst: float) -> None:
        if not (0 < rate_per_s < math.inf and 0 < burst < math.inf):
            raise ValueError(f"a token bucket needs a rate and a burst above 0, got {rate_per_s} and {burst}")
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._tokens = float(burst)
        self._filled = -math.inf

    def take(self, now: float, n: int = 1) -> float:
        """Take n tokens and return 0.0, or take none and return the seconds after which there will be n.

        More than ``burst`` at once can never be had: that is infinity.
        """
        if n > self.burst:
            return math.inf
        if now > self._filled:
            self._tokens = min(self.burst, self._tokens + (now - self._filled) * self.rate_per_s)
            self._filled = now
        missing = n - self._tokens
        if missing > 0:
            return missing / self.rate_per_s
        self._tokens -= n
        return 0.0
