"""The federation: broadcast, train, refuse what is no update, aggregate, step, evaluate; round after round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from fedplatform.core.messages import (
    NAN,
    WITHOUT_EFFECT,
    Aggregate,
    Evidence,
    HospitalRecord,
    HospitalState,
    Predictions,
    Reply,
    RoundReport,
)
from fedplatform.core.seeding import numpy_generator, torch_generator
from fedplatform.core.tasks import TaskName
from fedplatform.core.vectors import cosines_to
from fedplatform.core.withdrawal import Withdrawal
from fedplatform.data.splits import Role
from fedplatform.federated.aggregation import Aggregator, aggregate_usable, combine_statistics
from fedplatform.federated.answers import taken
from fedplatform.federated.arrivals import Arrivals
from fedplatform.federated.cohort import Cohort
from fedplatform.federated.root_set import RootSet
from fedplatform.federated.secure import GroupedCohort, GroupMemory
from fedplatform.federated.selection import Best, better, moving_average
from fedplatform.federated.server_optimiser import Average, Moments, ServerOptimiser
from fedplatform.learning.metrics import Figures, attack_success, judge
from fedplatform.learning.parameters import ParameterLayout, PersonalState


@dataclass(frozen=True, eq=False)
class FederationState:
    """All that the server carries from round to round; stored, it is the checkpoint."""

    round_number: int
    weights: np.ndarray  # (d,) float32
    previous_delta: np.ndarray  # (num_shared,) float32, the last step
    memory: object = None  # what the aggregation rule hands itself over the rounds: reputations, what it has learned
    root_personal: PersonalState = field(default_factory=dict)  # the personal part of the server's own hospital
    moments: Moments = field(default_factory=dict)  # what the server's optimiser carries on
    average: np.ndarray | None = None  # (d,) float32, over the models of all rounds, where one is asked for
    best: Best | None = None  # the round that did best on validation scans
    announced: Mapping[str, int] = field(default_factory=dict)  # scans to judge by, by hospital/role

    @property
    def answering(self) -> np.ndarray:
        """The weights (d,) that answer for a scan: the average over rounds where there is one, else the newest."""
        return self.weights if self.average is None else self.average


def own_name(hospital_id: str, round_number: int) -> str:  # noqa: ARG001
    """The name of a hospital that takes part under its own."""
    return hospital_id


@dataclass(frozen=True, eq=False)
class Federation:
    """The server's side of federated learning.

    ``quorum`` is the least number of usable updates a round needs; below it, or where the rule cannot work with so few,
    the weights stay and the report says why. ``root`` is the server's own small clean data set as a hospital, needed
    by rules that compare with it. ``byzantine`` only marks the truth in the records and is never shown to the rule. In
    every round the seed draws ``participants`` of the hospitals, None for all; all are asked to judge the new model.
    With ``ema`` > 0 that is the moving average over the rounds' models. ``patience`` > 0 ends the training after
    so many rounds without a better one by validation. Who has ``withdrawn`` is no part of the cohort, and every round
    records that. ``name_in`` gives the name under which the rule knows a hospital in a round: its own, except where a
    simulated attacker comes back under a new one.
    """

    cohort: Cohort
    rule: Aggregator
    layout: ParameterLayout
    num_classes: int
    seed: int
    quorum: int
    root: RootSet | None = None
    byzantine: frozenset[str] = field(default=frozenset())
    participants: int | None = None
    optimiser: ServerOptimiser = field(default_factory=Average)
    ema: float = 0.0
    patience: int = 0
    withdrawn: tuple[Withdrawal, ...] = ()
    task: TaskName = "multiclass"
    name_in: Callable[[str, int], str] = own_name

    def start(self, weights: np.ndarray) -> FederationState:
        """The state before the first round."""
        return FederationState(
            0, weights, np.zeros(self.layout.num_shared, np.float32), root_personal=self._root_personal()
        )

    def rounds(self, state: FederationState, *, until: int) -> Iterator[tuple[FederationState, RoundReport]]:
        """Run up to and including round ``until``, handing out state and report after each."""
        while state.round_number < until and not self._is_settled(state):
            state, report = self.run_round(state)
            yield state, report

    def _is_settled(self, state: FederationState) -> bool:
        """Whether no round was better by validation for as long as one is waited for."""
        best = state.best
        return bool(self.patience) and best is not None and state.round_number - best.round_number >= self.patience

    def run_round(self, state: FederationState) -> tuple[FederationState, RoundReport]:
        """One round; a function of the state and of nothing else that changes."""
        number = state.round_number + 1
        if self.root is not None:
            self.root.hospital.personal = dict(state.root_personal)
        started = time.monotonic()
        arrivals = self._collect(state, number)
        trained, claimed = time.monotonic(), {update.hospital_id: update.num_examples for update in arrivals.updates}
        aggregate, statistics, records, memory = self._aggregate(arrivals, state, number)
        del arrivals  # and with it the updates: there is room for new weights
        step, moments = aggregate, state.moments
        if any(record.weight for record in records):
            step, moments = self.optimiser.step(aggregate, moments)
        weights = state.weights.copy()
        weights[: self.layout.num_shared] += step
        weights[self.layout.num_shared :] += statistics
        average = None
        if self.ema:
            average = moving_average(state.average, weights, decay=self.ema, rounds=number)
        best, announced = state.best, state.announced
        state = FederationState(number, weights, aggregate, memory, self._root_personal(), moments, average)
        aggregated = time.monotonic()
        answers = taken(
            self.cohort.evaluate(state.answering, (Role.VALIDATION, Role.TEST)),
            num_classes=self.num_classes,
            task=self.task,
            announced=announced,
            trained=claimed,
        )
        tests = [predictions for predictions in answers.predictions if predictions.role == Role.TEST]
        validation = self._judged([p for p in answers.predictions if p.role == Role.VALIDATION])
        best = better(best, validation, round_number=number, weights=state.answering)
        state = replace(state, best=best, announced=answers.announced)
        pooled = self._judged(tests)
        report = RoundReport(
            round_number=number,
            accuracy=pooled.accuracy,
            macro_f1=pooled.macro_f1,
            auc=pooled.auc,
            loss=pooled.loss,
            validation_accuracy=validation.accuracy,
            validation_balanced_accuracy=validation.balanced_accuracy,
            validation_auc=validation.auc,
            validation_loss=validation.loss,
            best_round=state.best.round_number if state.best else 0,
            train_seconds=trained - started,
            aggregate_seconds=aggregated - trained,
            evaluate_seconds=time.monotonic() - aggregated,
            hospitals=tuple(self._with_accuracy(self._with_resting(records, number), tests)),
            confusion=tuple(tuple(int(count) for count in row) for row in pooled.confusion),
            calibration_error=pooled.calibration_error,
            label_auc=pooled.label_auc,
            quadratic_kappa=pooled.quadratic_kappa,
            mean_absolute_error=pooled.mean_absolute_error,
            attack_success=attack_success(tests),
            tests=tuple(tests),
        )
        return state, report

    def _judged(self, predictions: Sequence[Predictions]) -> Figures:
        return judge(predictions, num_classes=self.num_classes, task=self.task)

    def _root_personal(self) -> PersonalState:
        return {} if self.root is None else self.root.hospital.personal

    def _cohort_for_round(self, memory: object, number: int) -> Cohort:
        """The cohort of a round: under secure aggregation, its groups are dealt as the rule asked."""
        if isinstance(self.cohort, GroupedCohort) and isinstance(memory, GroupMemory):
            known = {self.name_in(name, number): name for name in self.cohort.hospital_ids}
            return self.cohort.seated(memory.seating.renamed(known))
        return self.cohort

    def _collect(self, state: FederationState, number: int) -> Arrivals:
        """Let the hospitals train, and write down what they reply as it arrives."""
        cohort, layout = self._cohort_for_round(state.memory, number), self.layout
        asked = self._drawn(number)
        arrivals = Arrivals(asked, num_shared=layout.num_shared, size=layout.size, round_number=number)
        for _ in map(arrivals.add, cohort.train(state.weights, number, asked)):
            pass  # no name holds an update while the next is under way
        return arrivals

    def _drawn(self, number: int) -> tuple[str, ...]:
        """The hospitals that take part in a round, in their order."""
        ids = self.cohort.hospital_ids
        if self.participants is None:
            return ids
        drawn = numpy_generator(self.seed, "server", number, "participants").permutation(len(ids))
        return tuple(ids[place] for place in sorted(drawn[: self.participants]))

    def _with_resting(self, records: list[HospitalRecord], number: int) -> list[HospitalRecord]:
        """The records of all hospitals, in their order, those that have withdrawn last."""
        asked = {record.hospital_id: record for record in records}
        there = [
            asked.get(name) or self._record(Reply(name, HospitalState.RESTING), number, "")
            for name in self.cohort.hospital_ids
        ]
        gone = (Reply(one.hospital_id, HospitalState.WITHDRAWN, reason=one.reason) for one in self.withdrawn)
        return [*there, *(self._record(reply, number, reply.reason) for reply in gone)]

    def _aggregate(
        self, arrivals: Arrivals, state: FederationState, number: int
    ) -> tuple[np.ndarray, np.ndarray, list[HospitalRecord], object]:
        """The server's step (num_shared,), that of batch normalisation (rest,), a record for every hospital, accuracy
        still open, and the rule's memory.
        """
        replies, updates = arrivals.replies, arrivals.updates
        shared = self.layout.num_shared
        still = np.zeros(shared, np.float32), np.zeros(self.layout.size - shared, np.float32)
        if len(updates) < self.quorum:
            why = f"{len(updates)} usable updates, the quorum is {self.quorum}"
            return *still, self._without_effect(replies, number, why), state.memory
        deltas, statistics = arrivals.table()
        root = None if self.root is None else self.root.at(state.weights, number)
        evidence = Evidence(
            hospital_ids=tuple(self.name_in(update.hospital_id, number) for update in updates),
            num_examples=np.array([update.num_examples for update in updates], np.int64),
            previous_delta=state.previous_delta,
            generator=torch_generator(self.seed, "server", number, "aggregation"),
            round_number=number,
            root_delta=None if root is None else root.delta,
            root=root,
            memory=state.memory,
            weights=state.weights[:shared],
            layers=self.layout.layers,
            groups=tuple(
                tuple(self.name_in(name, number) for name in update.group) for update in updates if update.group
            ),
        )
        try:
            aggregate = aggregate_usable(self.rule, deltas, evidence, refused=arrivals.refused)
        except ValueError as error:  # too few hospitals left this round for the rule's f
            return *still, self._without_effect(replies, number, str(error)), state.memory
        # A step that is a view of somebody's row would keep all rows.
        step, moved = aggregate.delta.astype(np.float32, copy=aggregate.delta.base is not None), still[1]
        if statistics.shape[1]:
            moved = combine_statistics(self.rule, statistics, aggregate=aggregate)
            if self.participants is not None:  # the federation's control variate is a mean over all hospitals
                self.layout.controls(moved)[:] *= np.float32(
                    min(1.0, self.participants / len(self.cohort.hospital_ids))
                )
        if not (np.isfinite(step).all() and np.isfinite(moved).all()):
            return *still, self._without_effect(replies, number, "the aggregate is not finite"), state.memory
        rows = {update.hospital_id: row for row, update in enumerate(updates)}
        directions = cosines_to(deltas, aggregate.delta)
        records = [
            self._with_verdict(
                self._record(reply, number, reply.reason), rows.get(reply.hospital_id), directions, aggregate
            )
            for reply in replies
        ]
        return step, moved, records, aggregate.memory

    @staticmethod
    def _with_verdict(
        record: HospitalRecord, row: int | None, directions: tuple[np.ndarray, np.ndarray], aggregate: Aggregate
    ) -> HospitalRecord:
        """The record of a hospital with what the rule made of its update, in ``row``; None where none was usable.

        ``directions`` are the cosines (n,) of the updates to the aggregate and their norms (n,).
        """
        if row is None:
            return record
        cosines, norms = directions
        hostile = bool(aggregate.hostile[row])
        record = replace(
            record,
            weight=float(aggregate.weights[row]),
            norm=float(norms[row]),
            cosine=float(cosines[row]),
            state=HospitalState.HOSTILE if hostile else record.state,
            reason="shut out by the aggregation rule" if hostile else record.reason,
        )
        if aggregate.judgements:
            judgement = asdict(aggregate.judgements[row])
            del judgement["norm"]  # the record has it already
            reason = judgement.pop("reason") or record.reason
            record = replace(record, reason=reason, **judgement)
        if not aggregate.weights.any():
            record = replace(record, reason=f"{WITHOUT_EFFECT}: the rule trusts nobody; {record.reason}")
        return record

    def _without_effect(self, replies: Sequence[Reply], number: int, why: str) -> list[HospitalRecord]:
        """The records of a round that changed nothing; whose update was missing keeps its own reason beside ``why``."""
        reason = f"{WITHOUT_EFFECT}: {why}"
        return [
            self._record(reply, number, f"{reason}; {reply.reason}" if reply.reason else reason) for reply in replies
        ]

    def _record(self, reply: Reply, number: int, reason: str) -> HospitalRecord:
        update = reply.update
        return HospitalRecord(
            round_number=number,
            hospital_id=reply.hospital_id,
            state=reply.state,
            reason=reason,
            is_byzantine=reply.hospital_id in self.byzantine,
            num_examples=update.num_examples if update else 0,
            norm=NAN,
            cosine=NAN,
            weight=0.0,
            train_loss=update.train_loss if update else NAN,
            train_seconds=update.seconds if update else NAN,
            accuracy=NAN,
            loss=NAN,
            update_bytes=update.travelled if update else 0,
        )

    def _with_accuracy(
        self, records: Sequence[HospitalRecord], tests: Sequence[Predictions]
    ) -> Iterator[HospitalRecord]:
        own = {predictions.hospital_id: predictions for predictions in tests}
        for record in records:
            answer = own.get(record.hospital_id)
            if answer is None:
                yield record
            elif answer.failure:
                yield _unjudged(record, answer.failure)
            else:
                figures = self._judged([answer])
                yield replace(
                    record,
                    accuracy=figures.accuracy,
                    loss=figures.loss,
                    judged=len(answer.labels),
                    balanced_accuracy=figures.balanced_accuracy,
                    auc=figures.auc,
                    attack_success=attack_success([answer]),
                )


def _unjudged(record: HospitalRecord, failure: str) -> HospitalRecord:
    """The record of a hospital whose evaluation failed; what went wrong before, in training, goes first."""
    if record.state in (HospitalState.LATE, HospitalState.CRASHED):
        return record  # the same fault, told already
    state = HospitalState.UNJUDGED if record.state is HospitalState.REPORTED else record.state
    reason = f"its evaluation failed: {failure}"
    return replace(record, state=state, reason=f"{record.reason}; {reason}" if record.reason else reason)
