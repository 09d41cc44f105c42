"""The Ray engine: starts or joins Ray, places the server and its hospitals, and streams the reports back."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster.joining import LOCAL, join
from actors.cohort import CohortError, RayCohort, cause
from actors.gateway.application import GatewayOptions, close_gateway, open_gateway
from actors.gateway.server_actor import RemoteGatewayServer, open_gateway_server
from actors.http.start import prepare
from actors.own_code import by_value
from actors.placement import NOBODY, Absences, GpuShares, require_nodes, takes_gpus
from actors.run_metrics import RunMetrics
from actors.server import Server
from fedplatform.core.compute import ComputeError
from fedplatform.core.messages import RoundReport
from fedplatform.core.site_statistics import LEAST, SiteStatistics
from fedplatform.core.specification import nearest
from fedplatform.core.withdrawal import Withdrawal
from fedplatform.data.shards import Manifest
from fedplatform.experiments.callbacks import Callback
from fedplatform.experiments.checkpoint import CheckpointFolder
from fedplatform.experiments.engine import Earlier, Outcome, RunningFederation, statistics_plan
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.places import Place
from fedplatform.federated.aggregation import Mixed
from fedplatform.federated.trust import OptiGradTrust
from fedplatform.outside.gateway_server import run_id
from fedplatform.outside.terms import Terms

RESTART_TIMEOUT_S = 360.0  # the hospitals' actors start anew, too
CALL_TIMEOUT_S = 10.0
DEATHS_IN_A_ROUND = 3  # of the server: then it is the round that kills it, and a person has to look
FAREWELL_S = 10.0  # for hospitals outside to hear that it is over

log = logging.getLogger(__name__)


class RayFederation:
    """A federation that runs in a server actor; ``restarts`` where Ray starts that again and it has checkpoints."""

    def __init__(self, server: Any, *, restarts: bool) -> None:
        self._server = server
        self._restarts = restarts
        self._done = 0  # rounds that were handed out

    def earlier(self) -> Earlier:
        """What earlier launches left."""
        earlier: Earlier = ray.get(self._server.earlier.remote())
        self._done = len(earlier.reports)
        return earlier

    def reports(self) -> Iterator[RoundReport]:
        """Reports as the server sends them; where it dies, those of the server that Ray starts in its place."""
        deaths = 0
        while True:
            try:
                for ref in self._server.reports.options(num_returns="streaming").remote():
                    report: RoundReport = ray.get(ref)
                    self._done, deaths = report.round_number, 0
                    yield report
                return
            except RayActorError as error:
                deaths += 1
                if deaths == DEATHS_IN_A_ROUND:
                    raise
                yield from self._started_again(error)

    def outcome(self) -> Outcome:
        """The outcome of the finished federation."""
        try:
            outcome: Outcome = ray.get(self._server.outcome.remote())
        except RayActorError as error:
            list(self._started_again(error))  # every round was handed out before
            outcome = ray.get(self._server.outcome.remote())
        return outcome

    def _started_again(self, error: RayActorError) -> Iterator[RoundReport]:
        """Wait for the server in place of the one that died, and hand out what that one had finished and not told."""
        if not self._restarts:
            raise error
        if not head_answers():
            raise CohortError("the Ray cluster's head node is gone") from error
        log.warning("the server actor died after round %d; it is started again from its checkpoint", self._done)
        until = time.monotonic() + RESTART_TIMEOUT_S
        while True:
            try:
                earlier: Earlier = ray.get(self._server.earlier.remote(), timeout=CALL_TIMEOUT_S)
                break
            except (ActorUnavailableError, GetTimeoutError):
                if not head_answers():
                    raise CohortError("the Ray cluster's head node is gone") from error
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)
        for complaint in earlier.refused:
            log.warning("%s", complaint)
        for report in earlier.reports[self._done :]:
            self._done = report.round_number
            yield report


class RayEngine:
    """Hospitals and server as Ray actors; an engine for :func:`fedplatform.run`.

    ``address`` is a running cluster's, or ``local`` to start one here; ``num_hosts`` how many actors the hospitals
    share, by default as many as there are CPUs, and never more than there are hospitals; ``gpus`` what each of them
    takes of a GPU, by default its part of all that the cluster has. On a cluster, hospitals that
    have places live there, each in an actor of its own; a Ray of one's own is a simulation, and nobody's place.
    Hospitals outside the cluster come through a gateway, ``outside``. ``absences`` says without whom a run may begin.

    >>> import fedplatform as fp
    >>> small = {"data": "lesions", "size": 16, "scans": 120, "hospitals": 3, "root_size": 0}
    >>> with fp.Ray("local") as ray:
    ...     result = fp.run(**small, byzantine=0, rule="mean", rounds=1, engine=ray)
    """

    def __init__(
        self,
        address: str = "local",
        *,
        num_hosts: int | None = None,
        gpus: GpuShares | None = None,
        outside: GatewayOptions | None = None,
        absences: Absences = NOBODY,
    ) -> None:
        self._num_hosts = num_hosts
        self._absences = absences
        self._told: set[str] = set()  # of whom somebody was told that they are absent
        self._given = gpus
        self._is_simulation = address == LOCAL
        self._outside = outside
        if outside:
            prepare()
        self._started = not ray.is_initialized()
        if self._started:
            join(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def places(self, experiment: Experiment, withdrawn: Sequence[Withdrawal] = ()) -> tuple[Place, ...]:
        """Where the hospitals live on this cluster. Raises :class:`PlacementError` at once where a node is missing.

        The node of one that has withdrawn is not looked for.
        """
        gone = {one.hospital_id for one in withdrawn}
        places = tuple(place for place in self._homes(experiment) if place.name not in gone)
        if unknown := set(self._absences.without) - set(experiment.hospital_ids()):
            close = nearest(min(unknown), experiment.hospital_ids())
            raise ExperimentError(f"--without {min(unknown)}: no such hospital{close}")
        if self._absences != NOBODY and experiment.privacy is not None:
            raise ExperimentError("groups are drawn among all hospitals: --wait and --without do not go with --privacy")
        absences = replace(self._absences, least=experiment.quorum - len(experiment.outside))
        for name in require_nodes(places, absences):
            if name not in self._told:
                log.warning("without %s: its node is not there; it joins when that comes", name)
                self._told.add(name)
        if self._absences.wait_s is not None:  # it has been waited for
            self._absences = replace(self._absences, wait_s=0.0)
        return places

    def _homes(self, experiment: Experiment) -> tuple[Place, ...]:
        """Where hospitals are to live, whether such nodes are there or not."""
        return () if self._is_simulation else tuple(p for p in experiment.places if p.name in experiment.inside)

    def computes_on(self, experiment: Experiment) -> str:
        """How the GPUs of the cluster are dealt out, in words; "" where there are none."""
        compute = experiment.compute
        if not takes_gpus(compute):
            return "" if compute.device == "cpu" else str(compute.here())
        if ":" in compute.device:
            raise ComputeError(f"--device {compute.device}: Ray deals the GPUs out; --device cuda asks for them")
        places = self._homes(experiment)
        without = [place.name for place in places if not place.gpus]
        if compute.device == "cuda" and without:
            raise ComputeError(f"--device cuda: {without[0]} has no 'gpus' in the federation's file; or --device auto")
        hosts = self._hosts(experiment)
        gpus = _gpus() if self._given is None or self._given.host else 0
        if compute.device == "cuda" and not gpus:
            raise ComputeError("--device cuda: this cluster has no GPU; --device auto takes what there is")
        if not gpus or (places and len(without) == len(places)):
            return ""
        dealt = f"{self._shares(experiment).host:g} for each of {hosts} actors"
        share = "as the hospitals' places say" if places else dealt
        return f"{gpus} GPU{'s' if gpus > 1 else ''}, {share}, {compute.on_gpu}"

    def callbacks(self, run: str) -> list[Callback]:
        """What Prometheus is told of the run of this name."""
        tls = self._outside.tls if self._outside else None
        return [RunMetrics(run, certificate=Path(tls[0]) if tls else None)]

    def _hosts(self, experiment: Experiment) -> int:
        """How many actors the hospitals share."""
        cpus = int(ray.cluster_resources().get("CPU", 1))
        return min(self._num_hosts or cpus, len(experiment.inside))

    def _shares(self, experiment: Experiment) -> GpuShares:
        """How the GPUs are dealt out to the server and to actors that hospitals share."""
        if not takes_gpus(experiment.compute) or self._homes(experiment):
            return GpuShares()
        if self._given is not None:
            return self._given
        own = ray.get_runtime_context().get_node_id()
        beside = any(node["NodeID"] == own and node["Resources"].get("GPU", 0) >= 1 for node in ray.nodes())
        return GpuShares.of(_gpus(), hosts=self._hosts(experiment), beside_server=beside)

    @contextmanager
    def launch(
        self,
        experiment: Experiment,
        shards: Path,
        *,
        state_folder: Path,
        start: np.ndarray | None = None,
        checkpoints: Path | None = None,
        withdrawn: Sequence[Withdrawal] = (),
    ) -> Iterator[RunningFederation]:
        """Place the actors, and take them down on the way out. The server runs on this machine, where the run is.

        Raises :class:`ExperimentError` where hospitals are outside and there is no gateway.
        """
        with (
            self._open_gateway(experiment, shards, state_folder.parent / "gateway") as gateway,
            self._placed(
                experiment,
                shards,
                state_folder=state_folder,
                start=start,
                checkpoints=checkpoints,
                gateway=gateway,
                withdrawn=withdrawn,
            ) as federation,
        ):
            yield federation
            if gateway:
                gateway.finish(FAREWELL_S)

    @contextmanager
    def _open_gateway(self, experiment: Experiment, shards: Path, folder: Path) -> Iterator[RemoteGatewayServer | None]:
        """The gateway, where hospitals are outside."""
        if not experiment.outside:
            yield None
            return
        if self._outside is None:
            who = ", ".join(experiment.outside)
            raise ExperimentError(f"outside: {who}; only 'fedplatform run' lets them in, by --gateway and --roster")
        terms = Terms.of(experiment, Manifest.load(shards), run=run_id(folder.resolve()))
        start = experiment.weights.kept if experiment.weights else None
        roster = self._outside.roster.only(experiment.outside)
        actor = open_gateway_server(roster, terms, folder.resolve(), start and start.resolve(), where=_here())
        try:
            open_gateway(actor, self._outside)
            yield RemoteGatewayServer(terms.run)
        finally:
            if head_answers():
                close_gateway()
                ray.kill(actor)

    @contextmanager
    def _placed(
        self,
        experiment: Experiment,
        shards: Path,
        *,
        state_folder: Path,
        start: np.ndarray | None,
        checkpoints: Path | None,
        gateway: RemoteGatewayServer | None,
        withdrawn: Sequence[Withdrawal],
    ) -> Iterator[RunningFederation]:
        """The server and, through it, the hospitals inside."""
        send_by_value(experiment)
        places = self.places(experiment, withdrawn)
        cpus = int(ray.cluster_resources().get("CPU", 1))
        num_hosts, shares = self._hosts(experiment), self._shares(experiment)
        if num_hosts > cpus and not places:
            raise CohortError(f"{num_hosts} hospital actors need as many CPUs, got {cpus}")
        remote: Any = ray.remote  # its type stubs do not know every scheduling strategy
        restarts = -1 if checkpoints else 0
        options = {"num_cpus": 0, "num_gpus": shares.server, "max_restarts": restarts, "scheduling_strategy": _here()}
        actor = remote(**options)(Server)
        server = actor.remote(
            experiment,
            shards.resolve(),
            state_folder=state_folder.resolve(),
            num_hosts=num_hosts,
            places=places,
            start=start,
            checkpoints=CheckpointFolder.of(checkpoints, experiment) if checkpoints else None,
            gateway=gateway,
            gpus=shares,
            withdrawn=tuple(withdrawn),
        )
        try:
            yield RayFederation(server, restarts=checkpoints is not None)
        except (RayActorError, RayTaskError) as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, ExperimentError):
                raise error.cause from error  # such as a full disk: its message is one line already
            raise CohortError(f"the server actor failed: {cause(error)}") from error
        finally:
            if head_answers():  # else Ray would end this process, before anybody has said why
                with suppress(RayError):  # it is going down either way, and the first error is the one to show
                    ray.get(server.close.remote(), timeout=CALL_TIMEOUT_S)
                ray.kill(server)

    def statistics(
        self, experiment: Experiment, shards: Path, *, least: int = LEAST, withdrawn: Sequence[Withdrawal] = ()
    ) -> list[SiteStatistics]:
        """Ask the hospitals in actors of their own, which end with the last answer."""
        send_by_value(experiment)
        places = self.places(experiment, withdrawn)
        plan = statistics_plan(experiment, shards.resolve(), places=places, withdrawn=withdrawn)
        cohort = RayCohort(
            plan,
            num_hosts=min(self._hosts(experiment), len(plan.shard_files)),
            deadline_s=experiment.deadline_s,
            places=places,
        )
        try:
            return cohort.statistics(least)
        finally:
            cohort.close()

    def close(self) -> None:
        """Shut Ray down if this engine started it."""
        if self._started and head_answers():
            ray.shutdown()


def _gpus() -> int:
    """GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def _here() -> NodeAffinitySchedulingStrategy:
    """This machine, where the run is."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def head_answers() -> bool:
    """Whether the cluster still has its head; without it calls to Ray wait, and after a minute it ends the process."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CALL_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def send_by_value(experiment: Experiment) -> None:
    """Let a user's own rule, attack, model or data set travel with its code: the actors need not have its file."""
    rule = experiment.rule
    rules: list[object] = [rule]
    if isinstance(rule, Mixed):
        rules = [*rule.mixers, rule.rule]
    elif isinstance(rule, OptiGradTrust):
        rules = [rule, rule.scorer]
    data = (experiment.data, experiment.partition, experiment.augmentation)
    training = (experiment.model, experiment.algorithm, experiment.objective)
    by_value(*rules, *data, *training, experiment.attack)
