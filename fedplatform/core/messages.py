"""What travels between hospitals, server and driver: frozen values, NumPy arrays, never a picture.

NumPy and not PyTorch on the wire because Ray hands NumPy arrays to another process without a copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, Protocol

import numpy as np
import torch

from fedplatform.core.tasks import confusions

NAN = float("nan")
SUBGROUP, UNKNOWN = "subgroup:", "unknown"  # begins the name of such a column; the word where nobody tells
TRAINING_RAISED = "its training raised"  # how the reason of a hospital whose own code failed begins
WITHOUT_EFFECT = "round without effect"  # how the reason of everybody begins where the model stays as it was


class HospitalState(StrEnum):
    """What became of a hospital in a round. Each but the first and the last two needs another remedy."""

    REPORTED = "reported"  # its update arrived and was used
    LATE = "late"  # nothing arrived before the deadline
    CRASHED = "crashed"  # its process died or raised
    MALFORMED = "malformed"  # it sent something that is not an update: NaN, wrong shape, wrong type
    HOSTILE = "hostile"  # a well-formed update that the aggregation rule shut out
    UNJUDGED = "unjudged"  # its update was used, but it could not judge the new model on its own scans
    RESTING = "resting"  # it was not drawn for this round
    WITHDRAWN = "withdrawn"  # it has left the federation and is not asked any more

    @property
    def is_as_expected(self) -> bool:
        """Whether nothing went wrong."""
        return self in (HospitalState.REPORTED, HospitalState.RESTING, HospitalState.WITHDRAWN)


@dataclass(frozen=True, eq=False)
class Update:
    """What one hospital learned in one round: its weights after local training minus the weights it was sent.

    ``delta`` is (d,) float32 in the order of :class:`fedplatform.learning.parameters.ParameterLayout`;
    ``num_examples`` is what the hospital *claims* to have trained on, and nobody can check it. Under secure aggregation
    ``delta`` is the mean over the hospitals in ``group``, each of which has it as its update; all else of one hospital
    stays there. ``travelled`` is how many bytes came to the server for it, 0 where nothing had to travel.
    """

    hospital_id: str
    round_number: int
    delta: np.ndarray
    num_examples: int
    train_loss: float
    seconds: float
    group: tuple[str, ...] = ()
    travelled: int = 0


@dataclass(frozen=True, eq=False)
class Reply:
    """A hospital's answer to a training request, or the reason in words why there is none."""

    hospital_id: str
    state: HospitalState
    update: Update | None = None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the current model says of one hospital's own scans in a role (``test``); the scans themselves stay.

    ``probabilities`` is (m, num_classes) float32, ``labels`` (m,) int64 or (m, num_classes) where a scan has any number
    of findings (:mod:`fedplatform.core.tasks`), ``loss`` the mean cross-entropy. ``failure``
    says in one line why there are none, where the hospital could not answer. ``groups`` (m,) int64 numbers the patients
    from 0, so that scans which belong together are known and nobody behind them; left out, each scan is by itself.
    ``subgroups`` (m,) are words by the name of a column, where the federation was asked to tell figures apart by it.
    Where a simulated attack plants a backdoor, ``stamped`` counts the scans of other classes that were shown with its
    trigger, too, and ``hits`` those of them that were answered with its target.
    """

    hospital_id: str
    role: str
    probabilities: np.ndarray
    labels: np.ndarray
    loss: float
    failure: str = ""
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    subgroups: Mapping[str, np.ndarray] = field(default_factory=dict)
    stamped: int = 0
    hits: int = 0

    def __post_init__(self) -> None:
        if not len(self.groups):
            object.__setattr__(self, "groups", np.arange(len(self.labels)))
        if len(self.groups) != len(self.labels):
            raise ValueError(f"every scan has a group, got {len(self.groups)} of {len(self.labels)} scans")

    @staticmethod
    def failed(hospital_id: str, roles: Sequence[str], failure: str) -> list[Predictions]:
        """What stands in each role for a hospital that could not answer."""
        nothing, nobody = np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
        return [Predictions(hospital_id, role, nothing, nobody, NAN, failure) for role in roles]


class Root(Protocol):
    """The server's small clean data set, as a rule may use it in one round, from the weights that were broadcast."""

    def losses(self, steps: np.ndarray) -> np.ndarray:
        """Mean cross-entropy on the root scans after each step: (m, d) to (m,) float64."""
        ...

    def gradient(self, step: np.ndarray) -> np.ndarray:
        """Gradient (d,) of that loss in the weights after one step (d,)."""
        ...

    def rehearse(self, *, num_hospitals: int, num_rounds: int, generator: torch.Generator) -> Sequence[Rehearsal]:
        """Rounds of a federation that the server plays by itself, its root scans dealt to made-up hospitals."""
        ...


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """One round that the server played by itself.

    ``honest`` (n, d) are the updates of its made-up hospitals, ``label_flipped`` (n, d) the same hospitals' after label
    flipping; ``root_delta`` (d,) and ``root`` as in :class:`Evidence`; ``previous_delta`` (d,) the step before.
    All are float32.
    """

    honest: np.ndarray
    label_flipped: np.ndarray
    root_delta: np.ndarray
    previous_delta: np.ndarray
    root: Root


@dataclass(frozen=True)
class Layer:
    """One named array of weights, as it lies in the shared part of an update: ``name``, and its ``shape``."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many coordinates it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the server knows beside the n updates of this round.

    ``num_examples`` (n,) int64 as claimed; ``root_delta`` (d,) the server's own update on its small clean data set, or
    None where it has none; ``previous_delta`` (d,) the last round's aggregate, zeros in the first; ``generator`` the
    stream from which a randomised rule draws; ``root`` that data set itself; ``memory`` what the rule handed over in
    the round before (``Aggregate.memory``), None in the first. Under secure aggregation ``groups`` names, for each
    update, the hospitals whose mean it is; else it is empty. ``weights`` (d,) is the shared part of the model that was
    broadcast, None where nobody told; ``layers`` are the arrays that it consists of, in order, or empty.

    >>> import fedplatform as fp
    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> evidence = fp.Evidence(("a", "b"), np.array([10, 30]), np.zeros(1, np.float32), generator)
    >>> fp.WeightedMean()([[1.0], [5.0]], evidence).delta.tolist()
    [4.0]
    """

    hospital_ids: tuple[str, ...]
    num_examples: np.ndarray
    previous_delta: np.ndarray
    generator: torch.Generator
    round_number: int = 1
    root_delta: np.ndarray | None = None
    root: Root | None = None
    memory: object = None
    groups: tuple[tuple[str, ...], ...] = ()
    weights: np.ndarray | None = None
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """What a rule that scores trust thinks of one hospital in one round, and why.

    ``trust`` is of this round and ``reputation`` carried over rounds, both 0 to 1. The six numbers after them are the
    fingerprint of its update (OptiGradTrust), the six ``z_`` the same as robust z-scores against the round's median
    and MAD. ``reason`` says in words what stood out, and is empty where nothing did.
    """

    trust: float = NAN
    reputation: float = NAN
    reconstruction_error: float = NAN
    root_cosine: float = NAN
    peer_cosine: float = NAN
    norm: float = NAN
    sign_agreement: float = NAN
    shapley: float = NAN
    z_reconstruction_error: float = NAN
    z_root_cosine: float = NAN
    z_peer_cosine: float = NAN
    z_norm: float = NAN
    z_sign_agreement: float = NAN
    z_shapley: float = NAN
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What an aggregation rule makes of n updates.

    ``delta`` is (d,) float32, the step of the server; ``weights`` (n,) float64, non-negative, how much each hospital
    counted, summing to 1 (or all zero where the rule refused everybody); ``hostile`` (n,) bool, whom the rule shut out.
    ``judgements`` are n, or none from a rule that scores nobody; ``memory`` comes back as ``Evidence.memory``.

    >>> import fedplatform as fp
    >>> fp.Mean()([[1.0, 2.0], [3.0, 4.0]]).weights.tolist()
    [0.5, 0.5]
    """

    delta: np.ndarray
    weights: np.ndarray
    hostile: np.ndarray
    judgements: tuple[Judgement, ...] = ()
    memory: object = None


@dataclass(frozen=True)
class HospitalRecord:
    """One row of ``hospitals.parquet``: a hospital in a round, with the truth that only a simulation knows."""

    round_number: int
    hospital_id: str
    state: HospitalState
    reason: str
    is_byzantine: bool
    num_examples: int
    norm: float  # L2 norm of the shared part of its update
    cosine: float  # cosine of that part to the aggregate
    weight: float  # how much it counted, 0 to 1
    train_loss: float
    train_seconds: float
    accuracy: float  # of the new global model on this hospital's own test scans; NaN where it has none
    loss: float
    trust: float = NAN  # from here on as in Judgement; NaN from a rule that scores nobody
    reputation: float = NAN
    reconstruction_error: float = NAN
    root_cosine: float = NAN
    peer_cosine: float = NAN
    sign_agreement: float = NAN
    shapley: float = NAN
    z_reconstruction_error: float = NAN
    z_root_cosine: float = NAN
    z_peer_cosine: float = NAN
    z_norm: float = NAN
    z_sign_agreement: float = NAN
    z_shapley: float = NAN
    judged: int = 0  # test scans of its own that it answered for
    balanced_accuracy: float = NAN  # of these
    auc: float = NAN
    update_bytes: int = field(default=0, compare=False)  # that came for its update; 0 where nothing had to travel
    attack_success: float = NAN  # of a backdoor on its test scans; NaN where the attack plants none


@dataclass(frozen=True)
class RoundReport:
    """One row of ``rounds.parquet`` and the hospitals' rows beneath it. Figures are of the pooled test scans.

    Where a scan has any number of findings, ``label_auc`` has one figure a finding, NaN for one that all test scans
    have or none; accuracy, AUC and the like are means over findings, and ``confusion`` is (2 k, 2 k), of finding j the
    rows and columns 2 j (without) and 2 j + 1 (with). Of ordered classes there is Cohen's kappa with quadratic weights,
    and how many classes an answer is off in the mean. ``attack_success`` is the share of test scans of other classes
    that are answered with a backdoor's target once they carry its trigger; NaN where the attack plants none.
    """

    round_number: int
    accuracy: float
    macro_f1: float
    auc: float
    loss: float
    validation_accuracy: float
    train_seconds: float
    aggregate_seconds: float
    evaluate_seconds: float
    hospitals: tuple[HospitalRecord, ...] = field(repr=False)
    confusion: tuple[tuple[int, ...], ...] = field(default=(), repr=False)  # rows: true class, columns: answer
    calibration_error: float = NAN
    validation_balanced_accuracy: float = NAN  # of the pooled validation scans, as the two below
    validation_auc: float = NAN
    validation_loss: float = NAN
    best_round: int = 0  # the best so far by validation; 0 where nothing was judged
    label_auc: tuple[float, ...] = field(default=(), repr=False)
    quadratic_kappa: float = NAN
    mean_absolute_error: float = NAN
    attack_success: float = NAN
    tests: tuple[Predictions, ...] = field(default=(), repr=False, compare=False)  # in no table

    def without_tests(self) -> RoundReport:
        """The same without the predictions, as it is kept once a newer round has them."""
        return replace(self, tests=())

    @property
    def had_effect(self) -> bool:
        """Whether any update counted, so that the model is another after the round."""
        return any(record.weight for record in self.hospitals)

    @property
    def balanced_accuracy(self) -> float:
        """The mean over the classes of the share of their scans that were answered rightly; NaN where one has none."""
        return balanced_accuracy(self.confusion, findings=len(self.label_auc))

    def over_hospitals(self, figure: Literal["accuracy", "balanced_accuracy", "auc", "loss"]) -> float:
        """The mean of a figure over the hospitals that have it; NaN where none has.

        One hospital moves it by at most one share, however many scans it says it has.
        """
        known = [value for record in self.hospitals if not math.isnan(value := getattr(record, figure))]
        return sum(known) / len(known) if known else NAN

    @property
    def without_answer(self) -> tuple[HospitalRecord, ...]:
        """The records of the hospitals in no figure of this round, though they were asked: Byzantine ones never are."""
        gone = (HospitalState.WITHDRAWN,)
        return tuple(
            record
            for record in self.hospitals
            if math.isnan(record.accuracy) and math.isnan(record.loss)
            if not record.is_byzantine and record.state not in gone
        )

    @property
    def majority(self) -> float:
        """The accuracy of always giving the most frequent answer, to each finding by itself; NaN without test scans."""
        shares = []
        for question in confusions(self.confusion, findings=len(self.label_auc)):
            counts = [sum(row) for row in question]
            shares.append(max(counts) / sum(counts) if sum(counts) else NAN)
        return sum(shares) / len(shares)

    @property
    def beats_majority(self) -> bool:
        """Whether more scans are answered rightly than by always saying the same; True where nothing was judged."""
        return not self.accuracy <= self.majority


def best_of(reports: Sequence[RoundReport]) -> RoundReport:
    """The report of the best round by validation; the last one where no round was judged by it."""
    last = reports[-1]
    return next((report for report in reports if report.round_number == last.best_round), last)


def balanced_accuracy(confusion: Sequence[Sequence[int]], *, findings: int = 0) -> float:
    """The mean over the classes of the share of their scans that were answered rightly; NaN where one has none.

    Of several ``findings`` the mean of (sensitivity + specificity) / 2 over those that some scans have and some not.
    """
    known = []
    for question in confusions(confusion, findings=findings):
        if question and all(map(sum, question)):
            known.append(sum(row[label] / sum(row) for label, row in enumerate(question)) / len(question))
    return sum(known) / len(known) if known else NAN
