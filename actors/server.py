"""The actor that runs the federation: it holds weights, rule and root set, and hands out a report a round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from actors.cohort import RayCohort
from fedplatform.engine import Outcome, ServerRole, cohort_plan
from fedplatform.experiment import Experiment
from fedplatform.messages import RoundReport
from fedplatform.places import Place


class Server:
    """The server of one experiment; it adds to :class:`fedplatform.engine.ServerRole` only where the hospitals are."""

    def __init__(
        self,
        experiment: Experiment,
        shards: Path,
        *,
        state_folder: Path,
        num_hosts: int,
        places: Sequence[Place] = (),
        start: np.ndarray | None = None,
    ) -> None:
        torch.set_num_threads(1)
        self._cohort = RayCohort(
            cohort_plan(experiment, shards, state_folder=state_folder, places=places),
            num_hosts=num_hosts,
            places=places,
            deadline_s=experiment.deadline_s,
        )
        self._role = ServerRole(experiment, shards, self._cohort, start=start)

    def reports(self) -> Iterator[RoundReport]:
        """Run the rounds, one report each."""
        yield from self._role.reports()

    def outcome(self) -> Outcome:
        """The final weights and the server's own scans."""
        return self._role.outcome()

    def close(self) -> None:
        """End the hospitals' actors."""
        self._cohort.close()
