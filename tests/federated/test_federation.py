"""The server's side: what it refuses, when a round has no effect, and that a federation learns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedplatform.attacks.poisoning import DistributedBackdoor, Whitewashing
from fedplatform.attacks.poisoning.attack import Situation
from fedplatform.core import mapped
from fedplatform.core.messages import Aggregate, Evidence, HospitalState, Predictions, Reply, Update
from fedplatform.data.shards import Manifest
from fedplatform.data.splits import Role
from fedplatform.experiments.engine import InProcessEngine, cohort_plan, local_training
from fedplatform.experiments.experiment import Experiment
from fedplatform.federated.aggregation import Aggregator, Mean, TrimmedMean
from fedplatform.federated.arrivals import malformation
from fedplatform.federated.byzantine import Adversary
from fedplatform.federated.cohort import InProcessCohort
from fedplatform.federated.server import Federation
from fedplatform.learning.metrics import judge
from fedplatform.learning.models import SmallCnn
from fedplatform.learning.parameters import ParameterLayout
from fedplatform.learning.training import Trainer

LAYOUT = ParameterLayout.of(SmallCnn(width=2)(channels=1, num_classes=2, size=16), personal=frozenset())


def update(hospital_id: str = "a", **changes: object) -> Update:
    values = {
        "hospital_id": hospital_id,
        "round_number": 1,
        "delta": np.ones(LAYOUT.size, np.float32),
        "num_examples": 10,
        "train_loss": 0.5,
        "seconds": 1.0,
    }
    return Update(**{**values, **changes})


@dataclass(frozen=True)
class Scripted:
    """A cohort that replies what the test wrote down; its hospitals hold no scans."""

    replies: tuple[Reply, ...]

    @property
    def hospital_ids(self) -> tuple[str, ...]:
        return tuple(reply.hospital_id for reply in self.replies)

    def train(self, weights: np.ndarray, round_number: int, asked: Sequence[str] | None = None) -> Iterator[Reply]:
        return iter(self.replies)

    def evaluate(self, weights: np.ndarray, roles: Sequence[Role]) -> list[Predictions]:
        return []


def reported(hospital_id: str, delta: object) -> Reply:
    return Reply(hospital_id, HospitalState.REPORTED, update(hospital_id, delta=delta))


def federation(*replies: Reply, rule: object = None, quorum: int = 1) -> Federation:
    return Federation(
        cohort=Scripted(replies), rule=rule or Mean(), layout=LAYOUT, num_classes=2, seed=0, quorum=quorum
    )


def start(server: Federation):
    return server.start(np.zeros(LAYOUT.size, np.float32))


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"delta": np.full(LAYOUT.size, np.nan, np.float32)}, "finite"),
        ({"delta": np.full(LAYOUT.size, np.inf, np.float32)}, "finite"),
        ({"delta": np.zeros(3, np.float32)}, "has shape"),
        ({"delta": np.zeros(LAYOUT.size, np.float64)}, "float32"),
        ({"delta": [0.0] * LAYOUT.size}, "float32"),
        ({"delta": np.full(LAYOUT.size, "x")}, "float32"),
        ({"round_number": 7}, "round 1 was due"),
        ({"num_examples": 0}, "at least one scan"),
        ({"num_examples": -5}, "at least one scan"),
    ],
)
def test_what_is_no_update_is_refused_in_words(broken: dict[str, object], complaint: str) -> None:
    assert complaint in malformation(update(**broken), size=LAYOUT.size, round_number=1)


def test_a_proper_update_is_not_refused() -> None:
    assert malformation(update(), size=LAYOUT.size, round_number=1) == ""


@dataclass(frozen=True)
class RemembersNames(Aggregator):
    """The mean, with the names of all whom it has ever seen as its memory."""

    def aggregate(self, deltas: np.ndarray, evidence: Evidence) -> Aggregate:
        aggregate = Mean().aggregate(deltas, evidence)
        return replace(aggregate, memory=(*(evidence.memory or ()), *evidence.hospital_ids))


def test_a_rule_does_not_know_a_whitewasher_again_and_the_records_do() -> None:
    adversary = Adversary(("b",), Whitewashing(stay=1), 2)
    server = replace(federation(rule=RemembersNames()), name_in=adversary.name_in)
    state, names = start(server), []
    for number in (1, 2, 3):
        replies = (Reply(name, HospitalState.REPORTED, update(name, round_number=number)) for name in "ab")
        state, report = replace(server, cohort=Scripted(tuple(replies))).run_round(state)
        names += [record.hospital_id for record in report.hospitals]
        assert [record.weight for record in report.hospitals] == [0.5, 0.5]
    assert state.memory == ("a", "b", "a", "b, new name 1", "a", "b, new name 2")
    assert names == ["a", "b"] * 3


def test_attackers_with_parts_of_their_own_get_them_in_their_order() -> None:
    attack = DistributedBackdoor(target=1)
    adversary = Adversary(("a", "c"), attack, 3)
    assert [adversary.attack_of(name) for name in ("a", "c")] == [attack.part(0, 2), attack.part(1, 2)]


# In a process of its own, because the peak of a process never falls again; a first round of small updates imports
# everything. What of a new array is not written to yet takes no memory. Linux's VmHWM, for `ru_maxrss` knows the peak
# of the process that started this one, too.
MEASURE = """
import sys
import numpy as np, torch
from fedplatform.core.messages import HospitalState, Reply, Update
from fedplatform.experiments.rule_text import parse_rule
from fedplatform.federated.server import Federation
from fedplatform.learning.parameters import ParameterLayout

class Sending:
    hospital_ids = tuple("abcdefghij")
    def train(self, weights, round_number, asked):
        for n, name in enumerate(self.hospital_ids):
            delta = np.full(weights.size, n, np.float32)
            yield Reply(name, HospitalState.REPORTED, Update(name, round_number, delta, 10, 0.5, 1.0))
            del delta
    def evaluate(self, weights, roles):
        return []

def peak(width):
    layout = ParameterLayout.of(torch.nn.Linear(1000, width), personal=frozenset())
    rule = parse_rule(sys.argv[1], f=2)
    server = Federation(cohort=Sending(), rule=rule, layout=layout, num_classes=2, seed=0, quorum=1)
    state, _ = server.run_round(server.start(np.zeros(layout.size, np.float32)))
    assert 4 <= state.weights.min() == state.weights.max() <= 5, state.weights
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) * 1024, layout.size

before, few = peak(10)
after, many = peak(8000)
print((after - before) / (10 * (many - few) * 4))
"""


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["mean", "trimmed_mean", "geometric_median"])
def test_ten_updates_are_aggregated_in_a_fifth_more_memory_than_their_own(rule: str) -> None:
    """Beside the ten there are the old weights and the update that is on its way, or the step."""
    output = subprocess.run([sys.executable, "-c", MEASURE, rule], capture_output=True, text=True, check=True)
    assert 1.1 < float(output.stdout) < 1.25


def test_updates_too_large_for_memory_are_aggregated_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [reported(name, np.full(LAYOUT.size, number, np.float32)) for number, name in enumerate("abc")]
    in_memory, _ = federation(*sent).run_round(start(federation(*sent)))
    monkeypatch.setattr(mapped, "HELD_BYTES", 100)
    seen = []

    class Looking(Aggregator):
        def aggregate(self, deltas, evidence):
            seen.append(mapped.file_of(deltas))
            return Mean().aggregate(deltas, evidence)

    in_file, report = federation(*sent, rule=Looking()).run_round(start(federation(*sent)))
    assert seen[0] is not None
    np.testing.assert_array_equal(in_file.weights, in_memory.weights)
    assert [record.norm for record in report.hospitals] == pytest.approx(
        [0, LAYOUT.num_shared**0.5, 2 * LAYOUT.num_shared**0.5]
    )


def test_a_malformed_update_never_reaches_the_rule() -> None:
    class Counting(Aggregator):
        seen = 0

        def aggregate(self, deltas, evidence):
            Counting.seen = len(deltas)
            assert np.isfinite(deltas).all()
            return Mean()(deltas, evidence)

    good = np.ones(LAYOUT.size, np.float32)
    server = federation(reported("a", good), reported("b", good * np.nan), reported("c", good[:5]), rule=Counting())
    state, report = server.run_round(start(server))
    assert Counting.seen == 1
    assert [record.state for record in report.hospitals] == ["reported", "malformed", "malformed"]
    np.testing.assert_array_equal(state.weights, good)


def test_the_server_adds_the_aggregate_to_the_weights() -> None:
    ones = np.ones(LAYOUT.size, np.float32)
    server = federation(reported("a", ones), reported("b", 3 * ones))
    state, report = server.run_round(start(server))
    np.testing.assert_allclose(state.weights, 2 * ones)
    assert [record.weight for record in report.hospitals] == [0.5, 0.5]


def test_below_the_quorum_the_weights_stay_and_the_report_says_why() -> None:
    ones = np.ones(LAYOUT.size, np.float32)
    late = Reply("b", HospitalState.LATE, reason="slow")
    server = federation(reported("a", ones), late, quorum=2)
    state, report = server.run_round(start(server))
    assert not state.weights.any()
    why = "round without effect: 1 usable updates, the quorum is 2"
    assert [record.reason for record in report.hospitals] == [why, f"{why}; slow"]


def test_a_round_with_too_few_hospitals_for_the_rule_has_no_effect_and_stops_nothing() -> None:
    ones = np.ones(LAYOUT.size, np.float32)
    server = federation(reported("a", ones), reported("b", ones), rule=TrimmedMean(f=1))
    state, report = server.run_round(start(server))
    assert not state.weights.any()
    assert "n > 2f" in report.hospitals[0].reason or "n=2" in report.hospitals[0].reason
    assert server.run_round(state)[0].round_number == 2


def test_an_aggregate_that_overflows_never_becomes_the_model() -> None:
    large = np.full(LAYOUT.size, 1e15, np.float32)

    class Boosted(Aggregator):
        def aggregate(self, deltas, evidence):
            aggregate = Mean()(deltas, evidence)
            with np.errstate(over="ignore"):
                return Aggregate(aggregate.delta * np.float32(1e30), aggregate.weights, aggregate.hostile)

    state, report = federation(*(reported(name, large) for name in "abc"), rule=Boosted()).run_round(
        start(federation())
    )
    assert not state.weights.any()
    assert "the aggregate is not finite" in report.hospitals[0].reason


def test_a_round_in_which_nobody_is_trusted_moves_nothing_and_says_so() -> None:
    class TrustsNobody(Aggregator):
        def aggregate(self, deltas, evidence):
            nobody = np.zeros(len(deltas))
            return Aggregate(np.zeros(deltas.shape[1], np.float32), nobody, nobody == 0)

    step = np.ones(LAYOUT.size, np.float32)
    server = federation(reported("a", step), reported("b", step), rule=TrustsNobody())
    state, report = server.run_round(start(server))
    assert not state.weights.any()
    assert all(record.state == HospitalState.HOSTILE for record in report.hospitals)
    assert all("the rule trusts nobody" in record.reason for record in report.hospitals)


def test_what_a_rule_remembers_comes_back_to_it_in_the_next_round() -> None:
    class Counts(Aggregator):
        def aggregate(self, deltas, evidence):
            aggregate = Mean()(deltas, evidence)
            return replace(aggregate, memory=(evidence.memory or 0) + 1)

    server = federation(reported("a", np.ones(LAYOUT.size, np.float32)), rule=Counts())
    state, _ = server.run_round(start(server))
    assert state.memory == 1
    late = federation(Reply("a", HospitalState.LATE), rule=Counts())
    state, _ = late.run_round(state)
    assert state.memory == 1, "a round below the quorum must not lose what was learned"


def test_batch_normalisation_enters_no_norm_and_no_distance() -> None:
    delta = np.zeros(LAYOUT.size, np.float32)
    delta[LAYOUT.num_shared :] = 1e6
    server = federation(reported("a", delta), reported("b", delta))
    _, report = server.run_round(start(server))
    assert [record.norm for record in report.hospitals] == [0.0, 0.0]


def test_figures_are_those_of_the_definition() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]], np.float32)
    figures = judge([Predictions("a", "test", probabilities, np.array([0, 1, 0, 0]), 0.5)], num_classes=2)
    assert figures.accuracy == 0.75
    assert figures.macro_f1 == pytest.approx((2 * 2 / (2 * 2 + 1) + 2 * 1 / (2 * 1 + 1)) / 2)
    assert figures.auc == pytest.approx(2 / 3)
    assert figures.confusion.tolist() == [[2, 1], [0, 1]]


def test_nothing_to_judge_gives_no_figure() -> None:
    assert np.isnan(judge([], num_classes=2).accuracy)


def run(experiment: Experiment, shards: Path, folder: Path):
    with InProcessEngine().launch(experiment, shards, state_folder=folder) as running:
        return list(running.reports())


LEARNING = {"rounds": 8, "local_epochs": 2, "model": "small_cnn(width=8)", "batch_size": 16}


def test_accuracy_rises_over_rounds(small: Experiment, shards: Path, tmp_path: Path) -> None:
    reports = run(small.replace(**LEARNING, rule="mean"), shards, tmp_path)
    assert reports[-1].loss < reports[0].loss
    assert max(report.accuracy for report in reports[-3:]) > reports[0].accuracy + 0.05


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "fedbn", "fedbn_p"])
def test_every_algorithm_runs_under_every_kind_of_rule(
    small: Experiment, shards: Path, tmp_path: Path, algorithm: str
) -> None:
    for rule in ("mean", "median", "multi_krum", "fltrust"):
        reports = run(small.replace(algorithm=algorithm, rule=rule, f=1, rounds=1), shards, tmp_path / rule)
        assert np.isfinite(reports[-1].loss)


def test_an_attacker_grades_nothing(small: Experiment, shards: Path, tmp_path: Path) -> None:
    experiment = small.replace(attack="label_flip", rounds=1)
    (report,) = run(experiment, shards, tmp_path)
    graded = {record.hospital_id for record in report.hospitals if not np.isnan(record.accuracy)}
    assert graded == set(experiment.hospital_ids()) - set(experiment.adversary().hospital_ids)


def test_the_mean_does_not_survive_scaling_and_a_robust_rule_does(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    attacked = small.replace(**LEARNING, attack="scaling(scale=-30.0)")
    mean = run(attacked.replace(rule="mean"), shards, tmp_path / "mean")[-1]
    robust = run(attacked.replace(rule="nnm+trimmed_mean", f=1), shards, tmp_path / "robust")[-1]
    assert robust.accuracy > mean.accuracy + 0.05
    assert robust.loss < mean.loss


@dataclass(frozen=True)
class SeesTheHonest:
    """A collusion that remembers nothing and returns what it saw, so that the test can see it too."""

    def collude(self, honest: torch.Tensor, situation: Situation) -> torch.Tensor:
        assert situation.num_byzantine == 1
        assert situation.num_hospitals == 5
        assert len(honest) == 4
        return honest[0]


def test_colluding_attackers_see_what_the_honest_sent(small: Experiment, shards: Path, tmp_path: Path) -> None:
    experiment = small.replace(attack=SeesTheHonest(), rounds=1, rule="mean")
    (report,) = run(experiment, shards, tmp_path)
    (attacker,) = experiment.adversary().hospital_ids
    norms = {record.hospital_id: record.norm for record in report.hospitals}
    first = next(name for name in experiment.hospital_ids() if name != attacker)
    assert norms[attacker] == norms[first]


def test_an_attack_that_hides_within_a_distance_hides_where_the_rule_looks(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    """Batch normalisation travels behind the weights under FedAvg; Min-Max must keep its bound on the weights alone."""
    experiment = small.replace(attack="min_max", algorithm="fedavg", rule="mean")
    cohort = InProcessCohort(cohort_plan(experiment, shards, state_folder=tmp_path))
    trainer = Trainer(local_training(experiment, Manifest.load(shards)))
    replies = list(cohort.train(trainer.initial_weights, 1))
    (attacker,) = experiment.adversary().hospital_ids
    shared = {r.hospital_id: torch.from_numpy(r.update.delta[: trainer.layout.num_shared]) for r in replies}
    forged = shared.pop(attacker)
    honest = torch.stack(list(shared.values()))
    reach = (honest - forged).norm(dim=1).max()
    assert float(reach) == pytest.approx(float(torch.cdist(honest, honest).max()), rel=1e-3)
