"""Reputation: what a hospital's updates of all rounds say of it. Falls fast, rises slowly, lets a hospital back in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """A hospital's reputation, 0 to 1, and whether it is excluded."""

    reputation: float
    excluded: bool = False


@dataclass(frozen=True)
class Reputation:
    """Reputation-based client evaluation (after ITEGAM-JETIA 2026, whose formulas are not public; these are ours).

    After a round with trust s the reputation R moves the share ``fall`` of the way to s where s is lower, ``rise``
    where it is higher. Below ``exclude`` the hospital is excluded; it goes on being scored, and is reinstated once R is
    back above ``reinstate``. The two bounds lie apart so that nobody flickers between them.
    """

    start: float = 0.6
    fall: float = 0.4
    rise: float = 0.2
    exclude: float = 0.25
    reinstate: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.exclude < self.reinstate <= 1 and 0 < self.rise <= 1 and 0 < self.fall <= 1):
            raise ValueError(
                "a reputation needs 0 <= exclude < reinstate <= 1 and rise and fall in (0, 1], "
                f"got exclude={self.exclude}, reinstate={self.reinstate}, rise={self.rise}, fall={self.fall}"
            )

    def after(self, standing: Standing | None, trust: float) -> Standing:
        """The standing after a round in which the hospital earned ``trust``; None for one never seen before."""
        old = standing or Standing(self.start)
        share = self.fall if trust < old.reputation else self.rise
        new = old.reputation + share * (trust - old.reputation)
        excluded = new < (self.reinstate if old.excluded else self.exclude)
        return Standing(new, excluded)
