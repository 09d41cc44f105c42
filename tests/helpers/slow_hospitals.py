"""Hospitals whose rounds have a middle in which they can be hurt, and the time they need to be back."""

from __future__ import annotations

import time
from dataclasses import dataclass

import ray
import torch

from actors.cohort import RayCohort
from fedplatform.learning.models import SmallCnn


@dataclass(frozen=True)
class SlowCnn:
    """A network that takes its time over every batch."""

    seconds: float

    def __call__(self, *, channels: int, num_classes: int, size: int) -> torch.nn.Module:
        body = SmallCnn(width=4)(channels=channels, num_classes=num_classes, size=size)
        return torch.nn.Sequential(Waits(self.seconds), body)


class Waits(torch.nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(self.seconds)
        return images


def wait_for(actors: RayCohort, hospital_id: str) -> None:
    """Until the hospital's actor, which died, has been started again."""
    until = time.monotonic() + 120
    while True:
        try:
            actors.process_of(hospital_id)
            return
        except ray.exceptions.RayActorError:
            assert time.monotonic() < until
            time.sleep(0.5)
