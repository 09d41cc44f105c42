"""What runs a federation: here in this process; on a cluster, :mod:`actors.engine` behind the same interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedplatform.core.compute import one_thread
from fedplatform.core.messages import Predictions, RoundReport
from fedplatform.core.site_statistics import LEAST, SiteStatistics
from fedplatform.core.tasks import misfit
from fedplatform.core.withdrawal import Withdrawal
from fedplatform.data.error import DataError
from fedplatform.data.shards import ROOT, Manifest, Shard
from fedplatform.data.splits import Role
from fedplatform.experiments.checkpoint import Checkpoint, CheckpointFolder, Checkpoints
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.places import Place
from fedplatform.experiments.shards_here import shards_of
from fedplatform.federated.cohort import Cohort, CohortPlan, InProcessCohort, InProcessMaskedHospitals
from fedplatform.federated.hospital import Hospital
from fedplatform.federated.hospital_state import Launch
from fedplatform.federated.root_set import RootSet
from fedplatform.federated.secure import GroupedCohort
from fedplatform.federated.selection import Best
from fedplatform.federated.server import Federation, FederationState
from fedplatform.federated.transport import TRANSPORTS
from fedplatform.learning.training import LocalTraining, Trainer

if TYPE_CHECKING:
    from fedplatform.experiments.callbacks import Callback

SAMPLES = 24  # pictures in the report


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a finished federation hands over: the shared weights, and the server's own scans with their answers.

    ``best`` is the round that did best on validation scans, with its weights; None where nothing was judged.
    """

    weights: np.ndarray  # (d,)
    best: Best | None
    sample_images: np.ndarray  # (m, c, h, w) uint8
    samples: Predictions | None


@dataclass(frozen=True)
class Earlier:
    """What earlier launches left: the reports of the rounds they finished, and which checkpoints were damaged."""

    reports: tuple[RoundReport, ...] = ()
    refused: tuple[str, ...] = ()


class RunningFederation(Protocol):
    """A federation under way: what was there before, its reports as they come, then its outcome."""

    def earlier(self) -> Earlier: ...

    def reports(self) -> Iterator[RoundReport]: ...

    def outcome(self) -> Outcome: ...


class Engine(Protocol):
    """Brings up hospitals and server for an experiment whose shards are written, and takes them down again.

    Training begins with the weights ``start`` (d,), or with the seed's own. With a folder of ``checkpoints``, on the
    machine of whoever launches, every round ends in one, and training goes on after the newest that is there. Who has
    ``withdrawn`` is not brought up.
    """

    def computes_on(self, experiment: Experiment) -> str:
        """What networks compute on, in words, where it is a GPU; "" for the CPU.

        Raises :class:`ComputeError` where there is not the device that the experiment asks for.
        """
        ...

    def callbacks(self, run: str) -> Sequence[Callback]:
        """What listens to the run of this name beside whatever always does."""
        ...

    def launch(
        self,
        experiment: Experiment,
        shards: Path,
        *,
        state_folder: Path,
        start: np.ndarray | None = None,
        checkpoints: Path | None = None,
        withdrawn: Sequence[Withdrawal] = (),
    ) -> AbstractContextManager[RunningFederation]: ...

    def statistics(
        self, experiment: Experiment, shards: Path, *, least: int = LEAST, withdrawn: Sequence[Withdrawal] = ()
    ) -> list[SiteStatistics]:
        """What each hospital that is not outside tells of its scans; a count of fewer than ``least`` patients stays."""
        ...


def require_same_task(experiment: Experiment, manifest: Manifest) -> None:
    """Raise :class:`ExperimentError` where shards are of another task than the experiment."""
    if complaint := misfit(experiment.task, multilabel=manifest.is_multilabel):
        raise ExperimentError(complaint)


def local_training(experiment: Experiment, manifest: Manifest) -> LocalTraining:
    """How hospitals train in an experiment on these shards; raises :class:`ExperimentError` where the tasks differ."""
    require_same_task(experiment, manifest)
    return experiment.local_training(channels=manifest.settings.channels, num_classes=len(manifest.classes))


def cohort_plan(
    experiment: Experiment,
    shards: Path,
    *,
    state_folder: Path,
    places: Sequence[Place] = (),
    launch: Launch | None = None,
    withdrawn: Sequence[Withdrawal] = (),
) -> CohortPlan:
    """How to bring up each hospital of an experiment that is not outside, and has not ``withdrawn``.

    Its shard lies in ``shards``, or in its place where it has one. Of a folder ``shards`` whose hospitals have their
    own, only ``manifest.json`` and the root set are read.
    """
    manifest = Manifest.load(shards)
    files = {place.name: Path(place.shard) for place in places if place.shard}
    if not files:
        dealt = shards_of(experiment, manifest)
        files = {name: shards.resolve() / shard.file for name, shard in dealt.items()}
    gone = {one.hospital_id for one in withdrawn}
    return CohortPlan(
        shard_files={name: files[name] for name in experiment.inside if name not in gone},
        classes=manifest.classes,
        training=local_training(experiment, manifest),
        adversary=experiment.adversary(),
        state_folder=state_folder,
        launch=launch,
        privacy=experiment.privacy,
        transport=TRANSPORTS[experiment.transport],
    )


def statistics_plan(
    experiment: Experiment, shards: Path, *, places: Sequence[Place] = (), withdrawn: Sequence[Withdrawal] = ()
) -> CohortPlan:
    """How to bring up hospitals that are asked for statistics only: on the CPU, and nothing of theirs is kept.

    Raises :class:`ExperimentError` where hospitals are outside: they answer only what their own program knows.
    """
    if experiment.outside:
        who = ", ".join(experiment.outside)
        raise ExperimentError(
            f"{who}: outside, and asked for updates and predictions only; statistics are of hospitals inside"
        )
    own = experiment.model_copy(update={"device": "cpu"})
    return cohort_plan(own, shards, state_folder=shards / ".nothing-kept", places=places, withdrawn=withdrawn)


def in_process_cohort(
    experiment: Experiment,
    shards: Path,
    *,
    state_folder: Path,
    launch: Launch | None = None,
    withdrawn: Sequence[Withdrawal] = (),
) -> Cohort:
    """All hospitals of an experiment in this process, behind secure aggregation where the experiment asks for it."""
    plan = cohort_plan(experiment, shards, state_folder=state_folder, launch=launch, withdrawn=withdrawn)
    if plan.privacy is None:
        return InProcessCohort(plan)
    return GroupedCohort(InProcessMaskedHospitals(plan), plan.privacy, seed=experiment.seed)


class ServerRole:
    """The server of an experiment over any cohort: root set, rule and federation put together, and its checkpoints."""

    def __init__(
        self,
        experiment: Experiment,
        shards: Path,
        cohort: Cohort,
        *,
        start: np.ndarray | None = None,
        checkpoints: Checkpoints | None = None,
        withdrawn: Sequence[Withdrawal] = (),
    ) -> None:
        manifest = Manifest.load(shards)
        self._trainer = Trainer(local_training(experiment, manifest))
        self._rounds = experiment.rounds
        self._root = self._open_root(shards) if experiment.root_size else None
        adversary = experiment.adversary()
        self._federation = Federation(
            cohort=cohort,
            rule=experiment.server_rule,
            layout=self._trainer.layout,
            num_classes=len(manifest.classes),
            seed=experiment.seed,
            quorum=experiment.quorum,
            root=RootSet(self._root) if self._root and experiment.rule.needs_root else None,
            participants=experiment.participants,
            optimiser=experiment.server_optimiser,
            ema=experiment.ema,
            patience=experiment.patience,
            task=experiment.task,
            byzantine=frozenset(adversary.hospital_ids if experiment.attack is not None else ()),
            name_in=adversary.name_in,
            withdrawn=tuple(withdrawn),
        )
        self._checkpoints = checkpoints
        found = checkpoints.found if checkpoints else None
        self._earlier = found.reports if found else ()
        first = self._trainer.initial_weights if start is None else start
        self._state: FederationState = found.state if found else self._federation.start(first)

    def _open_root(self, shards: Path) -> Hospital:
        shard = Shard.open(shards / ROOT)
        classes = Manifest.load(shards).classes
        if shard.classes != classes:
            raise DataError(f"{shard.path}: the classes are {', '.join(classes)}, got {', '.join(shard.classes)}")
        return Hospital("root", shard, trainer=self._trainer, state_file=None, role=Role.ROOT)

    def earlier(self) -> Earlier:
        """What earlier launches left."""
        return Earlier(self._earlier, self._checkpoints.refused if self._checkpoints else ())

    def reports(self) -> Iterator[RoundReport]:
        """Run the rounds one by one; a round is on the disk before it is told of."""
        for state, report in self._federation.rounds(self._state, until=self._rounds):
            self._state, self._earlier = state, (*self._earlier, report.without_tests())
            if self._checkpoints is not None:
                self._checkpoints.save(Checkpoint(state, self._earlier))
            yield report

    def outcome(self) -> Outcome:
        """The final weights and the server's own scans."""
        weights, best = self._state.answering, self._state.best
        if self._root is None:
            return Outcome(weights, best, np.zeros((0, 1, 1, 1), np.uint8), None)
        self._root.personal = {**self._root.personal, **self._state.root_personal}
        # One pass over its own scans gives the server the batch normalisation that no hospital ever sends.
        self._root.train(weights, self._rounds)
        shown = np.linspace(0, len(self._root.training_labels) - 1, SAMPLES).astype(int)
        answers = self._root.evaluate(weights, [Role.ROOT])[0]
        samples = Predictions("root", Role.ROOT, answers.probabilities[shown], answers.labels[shown], answers.loss)
        return Outcome(weights, best, np.asarray(self._root.training_images[shown]), samples)


class InProcessEngine:
    """Everything in this process, one hospital after another: the reference, and the quickest for small networks."""

    def computes_on(self, experiment: Experiment) -> str:
        """The device of this process."""
        compute = experiment.compute.here()
        return "" if compute.is_cpu else str(compute)

    def callbacks(self, run: str) -> Sequence[Callback]:  # noqa: ARG002
        """Nothing: there is no Prometheus to tell."""
        return ()

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
        """Bring up hospitals and server here. Raises :class:`ExperimentError` where some are outside."""
        if experiment.outside:
            raise ExperimentError("hospitals outside come through a gateway, and that takes --engine ray")
        folder = CheckpointFolder.of(checkpoints, experiment) if checkpoints else None
        opened = Checkpoints.open(folder, experiment.server_rule) if folder else None
        launch = opened.launch if opened else None
        with one_thread():  # as in a Ray actor
            cohort = in_process_cohort(
                experiment, shards, state_folder=state_folder, launch=launch, withdrawn=withdrawn
            )
            yield ServerRole(experiment, shards, cohort, start=start, checkpoints=opened, withdrawn=withdrawn)

    def statistics(
        self, experiment: Experiment, shards: Path, *, least: int = LEAST, withdrawn: Sequence[Withdrawal] = ()
    ) -> list[SiteStatistics]:
        """Ask the hospitals here, one after another."""
        return InProcessCohort(statistics_plan(experiment, shards, withdrawn=withdrawn)).statistics(least)
