"""The actor in which hospitals live: one each on a cluster, several together on a laptop."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import ray
import torch

from fedplatform.core.logs import Held, Line
from fedplatform.core.mapped import scratch
from fedplatform.core.messages import Predictions
from fedplatform.core.site_statistics import SiteStatistics
from fedplatform.data.splits import Role
from fedplatform.federated.byzantine import ByzantineHospital
from fedplatform.federated.cohort import CohortPlan
from fedplatform.federated.transport import Packed
from fedplatform.learning.training import Trainer


class HospitalHost:
    """Brings up its hospitals from their shards and passes requests on; no picture ever leaves it.

    An actor that imports torch costs about 5 CPU seconds and 180 MB, so hospitals on one machine share one. Its
    ``work`` group serves one request at a time; ``control`` answers beside it, so that a late training can be stopped.
    """

    def __init__(self, plan: CohortPlan, hospital_ids: Sequence[str]) -> None:
        torch.set_num_threads(1)
        self._log = Held.begin()
        trainer = Trainer(plan.training)
        self._participants = {name: plan.admit(name, trainer) for name in hospital_ids}
        self._transport = plan.transport
        self._stopped_round = 0

    @ray.method(concurrency_group="control")
    def stop(self, round_number: int) -> None:
        """Give up every training of this round or an earlier one, running or queued."""
        self._stopped_round = max(self._stopped_round, round_number)

    @ray.method(concurrency_group="control")
    def logged(self) -> Sequence[Line]:
        """What was logged here since the last time."""
        return self._log.fetch()

    @ray.method(concurrency_group="work")
    def ready(self) -> int:
        """Answer with the process id once all hospitals are up."""
        return os.getpid()

    @ray.method(concurrency_group="work")
    def train(self, hospital_id: str, weights: np.ndarray, round_number: int) -> Packed:
        """One hospital's update."""
        torch.set_num_threads(1)  # a setting of the calling thread, and this is not the constructor's
        update = self._participants[hospital_id].train(
            weights, round_number, should_stop=lambda: self._stopped_round >= round_number
        )
        return Packed.of(update, self._transport)

    @ray.method(concurrency_group="work")
    def forge(
        self,
        hospital_id: str,
        honest: Sequence[ray.ObjectRef[Packed]],
        weights: np.ndarray,
        round_number: int,
        colluding: Sequence[str],
    ) -> list[Packed]:
        """The updates of all ``colluding`` attackers, in order, forged from the honest ones by the attacker named."""
        torch.set_num_threads(1)
        attacker = self._participants[hospital_id]
        assert isinstance(attacker, ByzantineHospital)
        seen = scratch(len(honest), weights.size)
        for row, ref in enumerate(honest):
            seen[row] = ray.get(ref).open(self._transport, size=weights.size).delta
        forged = attacker.forge(seen, weights, round_number, colluding)
        return [Packed.of(update, self._transport) for update in forged]

    @ray.method(concurrency_group="work")
    def evaluate(
        self, hospital_id: str, weights: np.ndarray, roles: Sequence[Role], round_number: int
    ) -> list[Predictions]:
        """One hospital's predictions on its own scans, at the end of a round."""
        torch.set_num_threads(1)
        return self._participants[hospital_id].evaluate(weights, roles, round_number=round_number)

    @ray.method(concurrency_group="work")
    def statistics(self, hospital_id: str, least: int) -> SiteStatistics:
        """What one hospital tells of its scans; a count of fewer than ``least`` patients stays here."""
        return self._participants[hospital_id].statistics(least)
