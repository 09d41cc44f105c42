"""Studies of a user's own, cheap enough to be run by the dozen: how high a hill is at x."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ray import tune as ray_tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search.sample import Domain

from fedplatform.data.splits import Role
from tune.study import Goal, Study, Workplace, halving
from tune.trial import Choice, Figures


@dataclass(frozen=True)
class Hill(Study):
    """The top of a hill; ``diary`` is a file that hears of every trial that begins or ends.

    A trial whose x is above ``cliff`` raises. With ``deadly`` the first trial of all takes its process along, once.
    """

    diary: str
    cliff: float = 2.0
    pause_s: float = 0.0
    deadly: bool = False

    @property
    def objectives(self) -> Mapping[str, Goal]:
        return {"height": "max"}

    def space(self) -> Mapping[str, Domain]:
        return {"x": ray_tune.uniform(-1.0, 1.0)}

    def references(self) -> Mapping[str, Choice]:
        return {"foot": {"x": -1.0}}

    def steps(self, choice: Choice, place: Workplace, role: Role) -> Iterator[Figures]:
        self._note(f"began {role} {choice['x']}")
        grave = Path(f"{self.diary}.grave")
        if self.deadly and not grave.exists():
            grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if choice["x"] > self.cliff:
            raise ValueError(f"fell off\nthe cliff at {choice['x']}")
        for step in range(1, 3):
            time.sleep(self.pause_s)
            yield {"height": 1 - (choice["x"] - 0.5) ** 2 + step}
        self._note(f"ended {role} {choice['x']}")

    def _note(self, line: str) -> None:
        with Path(self.diary).open("a") as file:
            file.write(f"{line}\n")


@dataclass(frozen=True)
class Race(Study):
    """Runners whose place after half the way is their place at the end."""

    @property
    def objectives(self) -> Mapping[str, Goal]:
        return {"seconds": "min"}

    def space(self) -> Mapping[str, Domain]:
        return {"pace": ray_tune.uniform(1.0, 2.0)}

    def scheduler(self) -> TrialScheduler:
        return halving(after=2, steps=4)

    def steps(self, choice: Choice, place: Workplace, role: Role) -> Iterator[Figures]:
        for step in range(1, 5):
            yield {"seconds": choice["pace"] * step}
