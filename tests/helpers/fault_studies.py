"""A search of a user's own over a federation of seconds; in a file of its own, for Ray's workers import it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray import tune as ray_tune
from ray.tune.search.sample import Domain

from fedplatform.experiments.experiment import Experiment
from tune.setting import setting_of
from tune.study import FederatedStudy
from tune.trial import Choice


@dataclass(frozen=True)
class Pace(FederatedStudy):
    """How fast to learn in the federation that the file ``base`` describes."""

    base: str

    def space(self) -> Mapping[str, Domain]:
        return {"learning_rate": ray_tune.choice([0.01, 0.05])}

    def experiment(self, choice: Choice) -> Experiment:
        return setting_of(self.base, seed=0).replace(**choice)
