"""The actor that runs the federation: it holds weights, rule and root set, and hands out a report a round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from actors.cohort import RayCohort
from actors.gateway.server_actor import RemoteGatewayServer
from actors.hospital import HospitalHost
from actors.masked import MaskedHospitalHost, RayMaskedHospitals
from actors.placement import GpuShares, with_share
from fedplatform.core.logs import to_file
from fedplatform.core.messages import RoundReport
from fedplatform.core.withdrawal import Withdrawal
from fedplatform.experiments.checkpoint import CheckpointFolder, Checkpoints
from fedplatform.experiments.engine import Earlier, Outcome, ServerRole, cohort_plan
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.places import Place
from fedplatform.experiments.run_folder import LOG
from fedplatform.federated.cohort import Cohort
from fedplatform.federated.secure import GroupedCohort
from fedplatform.outside.outside_cohort import JoinedCohort, OutsideCohort

NO_GPU = GpuShares()


class Server:
    """The server of one experiment: :class:`fedplatform.experiments.engine.ServerRole` over hospitals elsewhere.

    They are in actors of their own, and outside the cluster behind a ``gateway``.

    Started again, it goes on after its newest checkpoint, with hospitals' actors of its own; the old ones die with it.
    """

    def __init__(
        self,
        experiment: Experiment,
        shards: Path,
        *,
        state_folder: Path,
        num_hosts: int,
        places: Sequence[Place] = (),
        start: np.ndarray | None = None,
        checkpoints: CheckpointFolder | None = None,
        gateway: RemoteGatewayServer | None = None,
        gpus: GpuShares = NO_GPU,
        withdrawn: Sequence[Withdrawal] = (),
    ) -> None:
        torch.set_num_threads(1)
        to_file(state_folder.parent / LOG)
        opened = Checkpoints.open(checkpoints, experiment.server_rule) if checkpoints else None
        launch = opened.launch if opened else None
        plan = cohort_plan(
            experiment, shards, state_folder=state_folder, places=places, launch=launch, withdrawn=withdrawn
        )
        self._inside = RayCohort(
            plan,
            num_hosts=num_hosts,
            places=[place for place in places if place.name in plan.shard_files],
            gpus=gpus.host,
            deadline_s=experiment.deadline_s,
            host=HospitalHost if plan.privacy is None else MaskedHospitalHost,
        )
        cohort: Cohort = self._inside
        if plan.privacy is not None:
            masked = RayMaskedHospitals(self._inside, plan, deadline_s=experiment.deadline_s)
            cohort = GroupedCohort(masked, plan.privacy, seed=experiment.seed)
        if gateway is not None:
            outside = OutsideCohort(gateway, experiment.outside, deadline_s=experiment.deadline_s, launch=launch)
            there = {*plan.shard_files, *experiment.outside}
            ids = tuple(name for name in experiment.hospital_ids() if name in there)
            cohort = JoinedCohort(self._inside, outside, hospital_ids=ids)
        own = experiment.model_copy(update={"device": with_share(experiment.compute, gpus.server).device})
        self._role = ServerRole(own, shards, cohort, start=start, checkpoints=opened, withdrawn=withdrawn)

    def earlier(self) -> Earlier:
        """What earlier launches left, this actor's own before it died among them."""
        return self._role.earlier()

    def reports(self) -> Iterator[RoundReport]:
        """Run the rounds, one report each."""
        yield from self._role.reports()

    def outcome(self) -> Outcome:
        """The final weights and the server's own scans."""
        return self._role.outcome()

    def close(self) -> None:
        """End the hospitals' actors."""
        self._inside.close()
