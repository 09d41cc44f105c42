"""The actor that runs the federation: it holds weights, rule and root set, and hands out a report a round."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from actors.cohort import RayCohort
from actors.hospital import HospitalHost
from actors.masked import MaskedHospitalHost, RayMaskedHospitals
from fedplatform.cohort import Cohort
from fedplatform.engine import Outcome, ServerRole, cohort_plan
from fedplatform.experiment import Experiment
from fedplatform.messages import RoundReport
from fedplatform.secure import GroupedCohort


class Server:
    """The server of one experiment; it adds to :class:`fedplatform.engine.ServerRole` only where the hospitals are."""

    def __init__(
        self,
        experiment: Experiment,
        shards: Path,
        *,
        state_folder: Path,
        num_hosts: int,
        start: np.ndarray | None = None,
    ) -> None:
        torch.set_num_threads(1)
        plan = cohort_plan(experiment, shards, state_folder=state_folder)
        self._cohort = RayCohort(
            plan,
            num_hosts=num_hosts,
            deadline_s=experiment.deadline_s,
            host=HospitalHost if plan.privacy is None else MaskedHospitalHost,
        )
        cohort: Cohort = self._cohort
        if plan.privacy is not None:
            masked = RayMaskedHospitals(self._cohort, plan, deadline_s=experiment.deadline_s)
            cohort = GroupedCohort(masked, plan.privacy, seed=experiment.seed)
        self._role = ServerRole(experiment, shards, cohort, start=start)

    def reports(self) -> Iterator[RoundReport]:
        """Run the rounds, one report each."""
        yield from self._role.reports()

    def outcome(self) -> Outcome:
        """The final weights and the server's own scans."""
        return self._role.outcome()

    def close(self) -> None:
        """End the hospitals' actors."""
        self._cohort.close()
