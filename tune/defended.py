"""Studies of a finished run whose defence is trained: what an attack, or other settings, make of its scans."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from fedplatform.core.compute import Compute
from fedplatform.core.seeding import torch_generator
from fedplatform.data.splits import Role
from fedplatform.defence.presets import HospitalParts
from fedplatform.defence.threats import Budget, Victim, attack_hospital
from fedplatform.experiments.defence.attack import spread_evenly
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.experiments.experiment import Experiment, ExperimentError
from tune.study import Study
from tune.trial import Choice


@dataclass(frozen=True, eq=False)
class Ward:
    """One hospital's scans in a role and its parts, and a neighbour's classifier."""

    parts: HospitalParts
    neighbour: torch.nn.Module
    images: torch.Tensor  # (n, c, h, w) in [0, 1]
    labels: torch.Tensor  # (n,)
    groups: np.ndarray  # (n,) which of them belong together

    def attacked(self, defence: str, tier: str, epsilon: float, budget: Budget, *, seed: int) -> torch.Tensor:
        """The scans as the attacker of a tier leaves them, whose victim is this defence with these parts' settings."""
        return attack_hospital(
            tier,
            Victim(self.parts.defended(defence), self.neighbour),
            self.images,
            self.labels,
            epsilon=epsilon,
            budget=budget,
            generator=torch_generator(seed, "tune", tier, self.parts.hospital_id),
        )


@dataclass(frozen=True)
class DefendedStudy(Study):
    """A study on the scans of a finished run; an implementation adds what is chosen.

    ``run`` is a run's folder with a trained defence. Of each of its first ``hospitals`` at most ``scans`` scans are
    measured. Thresholds are fitted on all validation scans of a hospital, or of all hospitals where it has few, as they
    are when it is served; so while the search goes on, they have seen the scans that measure them, for all choices
    alike. ``device`` is what a trial's process computes on.
    """

    run: str = ""
    hospitals: int = 10
    scans: int = 20
    epsilon: float = 4 / 255
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.run:
            raise ExperimentError("this study needs a finished run with a trained defence: --run RUN")
        opened(self.run)

    def experiment(self, choice: Choice) -> Experiment:  # noqa: ARG002
        """The run's own: only what comes after its training is chosen."""
        return opened(self.run).experiment

    def wards(self, role: Role) -> Iterator[Ward]:
        """The hospitals whose scans are measured."""
        tested = opened(self.run).tested
        with Compute.of(self.device).computing():
            for number, hospital_id in enumerate(tested[: self.hospitals]):
                after = tested[(number + 1) % len(tested)]
                yield ward_of(self.run, hospital_id, after, role, self.scans, self.device)

    @abstractmethod
    def references(self) -> dict[str, Choice]:
        """What the winner is shown beside."""


@lru_cache(maxsize=2)
def opened(run: str, device: str = "cpu") -> DefendedRun:
    """The run, read once a process. Raises :class:`ComputeError` where there is no such device."""
    return DefendedRun(Path(run).resolve(), device=Compute.of(device).place)


@lru_cache(maxsize=64)
def ward_of(run: str, hospital_id: str, neighbour: str, role: Role, scans: int, device: str) -> Ward:
    """One hospital, read once a process."""
    opened_run = opened(run, device)
    parts = opened_run.hospital(hospital_id)
    images, labels = parts.test if role is Role.TEST else parts.validation
    groups = parts.test_groups if role is Role.TEST else parts.validation_groups
    chosen = torch.from_numpy(spread_evenly(len(labels), scans))
    return Ward(parts, opened_run.hospital(neighbour).tuned, images[chosen], labels[chosen], groups[chosen.numpy()])


def with_settings(ward: Ward, **changes: object) -> Ward:
    """The same hospital with other settings of its defence. Raises :class:`ExperimentError` where they do not fit."""
    settings = ward.parts.settings
    changed = type(settings).from_settings({**settings.settings(), **changes})
    return replace(ward, parts=replace(ward.parts, settings=changed))
