"""The hospitals as the server sees them: one request to all, one reply from each. Here, all in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from fedplatform.attacks.poisoning.attack import Backdooring
from fedplatform.core.mapped import release, scratch
from fedplatform.core.messages import HospitalState, Predictions, Reply, Update
from fedplatform.core.site_statistics import LEAST, SiteStatistics
from fedplatform.core.tasks import misfit
from fedplatform.data.error import DataError
from fedplatform.data.shards import Shard
from fedplatform.data.splits import Role
from fedplatform.federated.answers import of_sender
from fedplatform.federated.byzantine import Adversary, ByzantineHospital
from fedplatform.federated.hospital import Hospital, Participant
from fedplatform.federated.hospital_state import Launch, OwnState
from fedplatform.federated.secure import Grouped, MaskedHospital, NothingLearnedError, RangeError, Request
from fedplatform.federated.transport import EXACT, Transport
from fedplatform.learning.training import LocalTraining, Trainer

ATTACKS = "attacks"  # the folder of what attackers remember


class Cohort(Protocol):
    """All hospitals of a federation behind one interface, wherever they run.

    Replies come one at a time, as they arrive, and no cohort holds on to one that it has handed out: the server writes
    each into its row (:class:`fedplatform.federated.arrivals.Arrivals`), and rows are in the order of ``hospital_ids``,
    so that sums have one order.
    """

    @property
    def hospital_ids(self) -> tuple[str, ...]: ...

    def train(self, weights: np.ndarray, round_number: int, asked: Sequence[str] | None = None) -> Iterator[Reply]:
        """Broadcast ``weights`` (d,); an update, or the reason for its absence, from each hospital, in any order.

        Only those take part that are ``asked``, None for all.
        """
        ...

    def evaluate(self, weights: np.ndarray, roles: Sequence[Role]) -> list[Predictions]:
        """Predictions of every honest hospital that answers, on its own scans in each role."""
        ...


@dataclass(frozen=True)
class CohortPlan:
    """What it takes to bring up a hospital in any process: where its shard lies, how it trains, who lies.

    ``shard_files`` maps a hospital to its Parquet file, in hospital order; ``classes`` are the names by label, which
    must be the same in every hospital, for a label means nothing without its name; ``state_folder`` holds personal
    state, and with a ``launch`` that of some rounds before, too, and what the attack must know of the round before;
    ``privacy`` is what the server may see of updates, None for everything; ``transport`` is how these travel.
    """

    shard_files: dict[str, Path]
    classes: tuple[str, ...]
    training: LocalTraining
    adversary: Adversary
    state_folder: Path
    launch: Launch | None = None
    privacy: Grouped | None = None
    transport: Transport = EXACT

    @property
    def honest(self) -> tuple[str, ...]:
        """The hospitals that train and grade honestly, in order."""
        return tuple(name for name in self.shard_files if name not in self.adversary.hospital_ids)

    def open_shard(self, hospital_id: str) -> Shard:
        """The hospital's shard. Raises DataError where it cannot be read, or holds another kind of scans."""
        shard = Shard.open(self.shard_files[hospital_id])
        training = self.training
        wanted = (training.num_classes, training.channels, training.size)
        if (len(shard.classes), shard.channels, shard.size) != wanted:
            raise DataError(
                f"{shard.path}: the federation has {wanted[0]} classes, {wanted[1]} channels and {wanted[2]} pixels a "
                f"side, {hospital_id}'s shard {len(shard.classes)}, {shard.channels} and {shard.size}"
            )
        if complaint := misfit(training.task, multilabel=shard.is_multilabel):
            raise DataError(f"{shard.path}: {complaint}")
        if shard.classes != self.classes:
            raise DataError(
                f"{shard.path}: the federation's classes are {', '.join(self.classes)} in this order, "
                f"{hospital_id}'s {', '.join(shard.classes)}"
            )
        return shard

    def admit(self, hospital_id: str, trainer: Trainer) -> Participant:
        """Open the hospital's shard and bring it up, honest or Byzantine."""
        attack: object = self.adversary.attack
        hospital = Hospital(
            hospital_id,
            self.open_shard(hospital_id),
            trainer=trainer,
            state_file=self.state_folder / f"{hospital_id}.safetensors",
            launch=self.launch,
            backdoor=attack if isinstance(attack, Backdooring) else None,
        )
        if hospital_id not in self.adversary.hospital_ids or self.adversary.attack is None:
            return hospital
        kept = self.state_folder / ATTACKS / f"{hospital_id}.safetensors"
        state = OwnState(kept, launch=self.launch) if self.launch else None
        return ByzantineHospital(hospital, self.adversary, state=state)


class InProcessCohort:
    """All hospitals in this process, one after another: the reference that every other cohort must equal bit for bit.

    Nobody is late here and a crash is the caller's: an exception in a hospital ends the run.
    """

    def __init__(self, plan: CohortPlan) -> None:
        trainer = Trainer(plan.training)
        self._plan = plan
        self._participants = {name: plan.admit(name, trainer) for name in plan.shard_files}

    @property
    def hospital_ids(self) -> tuple[str, ...]:
        """All hospitals in order."""
        return tuple(self._participants)

    def train(self, weights: np.ndarray, round_number: int, asked: Sequence[str] | None = None) -> Iterator[Reply]:
        """Train the hospitals in turn, then let colluding attackers look at the honest updates."""
        asked = self.hospital_ids if asked is None else asked
        colluding = self._plan.adversary.colluding_among(asked)
        honest = [name for name in asked if name not in colluding]
        # Attackers have a table of their own, as the server has; where there are none nothing is kept.
        seen = scratch(len(honest) if colluding else 0, weights.size)
        for row, name in enumerate(honest):
            yield self._trained(name, weights, round_number, seen[row : row + 1])
        if colluding:
            ringleader = self._participants[colluding[0]]
            assert isinstance(ringleader, ByzantineHospital)
            for update in ringleader.forge(seen, weights, round_number, colluding):
                yield Reply(update.hospital_id, HospitalState.REPORTED, self._received(update))

    def evaluate(self, weights: np.ndarray, roles: Sequence[Role]) -> list[Predictions]:
        """Every honest hospital's predictions on its own scans in each role."""
        return [
            predictions
            for name in self._plan.honest
            for predictions in of_sender(name, self._participants[name].evaluate(weights, roles), roles)
        ]

    def statistics(self, least: int = LEAST) -> list[SiteStatistics]:
        """What each hospital tells of its scans, in order, before anybody trains."""
        return [participant.statistics(least) for participant in self._participants.values()]

    def _trained(self, name: str, weights: np.ndarray, round_number: int, seen: np.ndarray) -> Reply:
        """The reply of a hospital, and a copy of its update in ``seen``, which has one row, or none."""
        update = self._received(self._participants[name].train(weights, round_number))
        seen[:] = update.delta
        release(seen)
        return Reply(name, HospitalState.REPORTED, update)

    def _received(self, update: Update) -> Update:
        """An update as it would have come out of its transport."""
        return replace(update, delta=self._plan.transport.received(update.delta))


class InProcessMaskedHospitals:
    """:class:`fedplatform.federated.secure.MaskedHospitals` in this process, one after another.

    A number that does not fit into the sum is an answer here, too, and so is having no update; every other exception
    ends the run.
    """

    def __init__(self, plan: CohortPlan) -> None:
        trainer = Trainer(plan.training)
        assert plan.privacy is not None
        self._plan = plan
        self._hospitals = {name: MaskedHospital(plan.admit(name, trainer), plan.privacy) for name in plan.shard_files}

    @property
    def hospital_ids(self) -> tuple[str, ...]:
        """All hospitals in order."""
        return tuple(self._hospitals)

    def ask(self, request: Request, content: Mapping[str, tuple[object, ...]]) -> Iterator[tuple[str, object]]:
        """Put a request to hospitals in turn."""
        for name, parts in content.items():
            answer: object
            try:
                answer = self._hospitals[name].answer(request, *parts)
            except (RangeError, NothingLearnedError) as error:
                answer = Reply(name, HospitalState.MALFORMED, reason=str(error))
            yield name, answer

    def train(self, weights: np.ndarray, round_number: int, hospital_ids: Sequence[str]) -> dict[str, Reply]:
        """Train the hospitals in turn, then let colluding attackers look at the honest updates, which only they may."""
        colluding = self._plan.adversary.colluding_among(hospital_ids)
        honest = [name for name in hospital_ids if name not in colluding]
        for name in honest:
            self._hospitals[name].train(weights, round_number)
        if colluding:
            ringleader = self._hospitals[colluding[0]].participant
            assert isinstance(ringleader, ByzantineHospital)
            seen = scratch(len(honest), weights.size)
            for row, name in enumerate(honest):
                seen[row] = self._hospitals[name].own_update.delta
            for forged in ringleader.forge(seen, weights, round_number, colluding):
                self._hospitals[forged.hospital_id].adopt(forged)
        return {name: Reply(name, HospitalState.REPORTED) for name in hospital_ids}

    def evaluate(self, weights: np.ndarray, roles: Sequence[Role]) -> list[Predictions]:
        """Every honest hospital's predictions on its own scans in each role."""
        return [
            predictions
            for name in self._plan.honest
            for predictions in of_sender(name, self._hospitals[name].evaluate(weights, roles), roles)
        ]
