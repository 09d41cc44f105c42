"""Hospitals as Ray actors: the same bits as in one process, and a state of its own for every way to fail."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import lying_answers
import numpy as np
import pytest
import ray
import torch
from lying_answers import REFUSED_LIES, LyingPlan
from safetensors.numpy import load_file
from shapes import FINDINGS, findings, scans
from slow_hospitals import SlowCnn, wait_for

import fedplatform as fp
from actors.cohort import RayCohort
from actors.engine import RayEngine, send_by_value
from fedplatform.attacks.poisoning.attack import Situation
from fedplatform.core.compute import ComputeError
from fedplatform.core.messages import HospitalState, RoundReport
from fedplatform.core.withdrawal import Withdrawal
from fedplatform.data.splits import Role
from fedplatform.experiments.engine import InProcessEngine, ServerRole, cohort_plan
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.run import partition_data
from fedplatform.federated.cohort import InProcessCohort
from fedplatform.federated.transport import TRANSPORTS, TransportName

pytestmark = pytest.mark.usefixtures("ray_here")


def weights_and_reports(engine: object, experiment: Experiment, shards: Path, folder: Path):
    with engine.launch(experiment, shards, state_folder=folder) as federation:
        reports = list(federation.reports())
        return federation.outcome().weights, reports


def from_one_host(experiment: Experiment, shards: Path, folder: Path):
    """The same with the hospitals in one actor and the server here."""
    send_by_value(experiment)
    cohort = RayCohort(cohort_plan(experiment, shards, state_folder=folder), num_hosts=1, deadline_s=120)
    server = ServerRole(experiment, shards, cohort)
    reports = list(server.reports())
    cohort.close()
    return server.outcome().weights, reports


@pytest.mark.parametrize(
    ("attack", "rule"),
    [
        ("sign_flip", "fltrust"),
        pytest.param("alie", "nnm+trimmed_mean", marks=pytest.mark.slow),
        pytest.param("none", "mean", marks=pytest.mark.slow),
        pytest.param("fingerprint_aware", "hybrid+trust", marks=pytest.mark.slow),
    ],
)
def test_one_process_one_host_and_many_hosts_give_the_same_bits(
    small: Experiment, shards: Path, tmp_path: Path, attack: str, rule: str
) -> None:
    experiment = small.replace(attack=attack, rule=rule, f=1)
    reference, _ = weights_and_reports(InProcessEngine(), experiment, shards, tmp_path / "process")
    for num_hosts in (1, 3):
        place = tmp_path / f"hosts-{num_hosts}"
        weights, _ = weights_and_reports(RayEngine(num_hosts=num_hosts), experiment, shards, place)
        assert weights.tobytes() == reference.tobytes()
        if not experiment.adversary().colluding:  # who colludes trains nothing of its own
            assert_the_same_personal_state(experiment, tmp_path / "process", place)


def assert_the_same_personal_state(experiment: Experiment, some: Path, others: Path) -> None:
    """The tensors and not the files: safetensors writes labels, of round and launch, in any order."""
    for name in experiment.hospital_ids():
        here, there = (load_file(place / f"{name}.safetensors") for place in (some, others))
        assert here.keys() == there.keys()
        assert all(here[key].tobytes() == there[key].tobytes() for key in here)


@pytest.mark.slow
def test_findings_are_learned_on_ray_as_in_one_process(tmp_path: Path) -> None:
    labels = findings(120)
    mine = fp.from_arrays(scans(labels), labels, classes=FINDINGS, groups=np.arange(120) // 2)
    settings = {"data": mine, "task": "multilabel", "size": 32, "hospitals": 3, "byzantine": 1, "rounds": 2}
    experiment = Experiment.from_settings(
        {**settings, "attack": "label_flip", "rule": "fltrust", "root_size": 20, "model": "small_cnn(width=4)"}
    )
    partition_data(experiment, tmp_path / "shards")
    reference, before = weights_and_reports(InProcessEngine(), experiment, tmp_path / "shards", tmp_path / "process")
    weights, reports = weights_and_reports(RayEngine(num_hosts=2), experiment, tmp_path / "shards", tmp_path / "ray")
    assert weights.tobytes() == reference.tobytes()
    assert [report.label_auc for report in reports] == [report.label_auc for report in before]
    assert len(reports[-1].label_auc) == 3


@pytest.mark.parametrize("transport", ["lossless", "half"])
def test_what_hospitals_and_colluding_attackers_send_is_packed_on_its_way_and_the_same_bits_as_in_one_process(
    small: Experiment, shards: Path, tmp_path: Path, transport: TransportName
) -> None:
    experiment = small.replace(transport=transport, attack="alie", rule="nnm+trimmed_mean", byzantine=2, f=2, rounds=1)
    plans = [cohort_plan(experiment, shards, state_folder=tmp_path / name) for name in ("process", "ray")]
    cohorts = [InProcessCohort(plans[0]), RayCohort(plans[1], num_hosts=2, deadline_s=120)]
    weights = ServerRole(experiment, shards, cohorts[0]).outcome().weights
    here, there = (
        {reply.hospital_id: reply.update.delta.tobytes() for reply in cohort.train(weights, 1) if reply.update}
        for cohort in cohorts
    )
    assert len(here) == experiment.hospitals
    assert here == there
    sender = next(name for name in experiment.hospital_ids() if name not in experiment.adversary().hospital_ids)
    packed = ray.get(cohorts[1].host_of[sender].train.remote(sender, weights, 1))
    assert {name: part.dtype for name, part in packed.parts.items()} == TRANSPORTS[transport].kinds
    assert sum(part.nbytes for part in packed.parts.values()) < 0.95 * weights.nbytes
    cohorts[1].close()


@dataclass(frozen=True)
class SendsNonsense:
    """An attacker whose update is not finite."""

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        return torch.full_like(own, float("nan"))


@dataclass(frozen=True)
class SendsTooMuch:
    """An attacker whose update has another shape."""

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        return torch.cat([own, own])


@dataclass(frozen=True)
class Raises:
    """An attacker whose code breaks."""

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        raise RuntimeError("no such scanner")


def last_states(reports: list[RoundReport]) -> dict[str, tuple[HospitalState, str]]:
    return {record.hospital_id: (record.state, record.reason) for record in reports[-1].hospitals}


@pytest.mark.parametrize(
    ("attack", "transport", "state", "words"),
    [
        (SendsNonsense(), "exact", HospitalState.MALFORMED, "NaN or infinite"),
        pytest.param(SendsNonsense(), "half", HospitalState.MALFORMED, "NaN or infinite", marks=pytest.mark.slow),
        (SendsTooMuch(), "exact", HospitalState.MALFORMED, "has shape"),
        (SendsTooMuch(), "lossless", HospitalState.MALFORMED, "what came does not"),
        (Raises(), "exact", HospitalState.CRASHED, "no such scanner"),
    ],
    ids=["not finite", "not finite, halved", "wrong shape", "wrong shape, packed", "raising"],
)
def test_a_broken_update_is_recorded_and_stops_nothing(
    small: Experiment, shards: Path, tmp_path: Path, attack: object, transport: str, state: HospitalState, words: str
) -> None:
    experiment = small.replace(attack=attack, rule="mean", transport=transport)
    weights, reports = from_one_host(experiment, shards, tmp_path)
    (attacker,) = experiment.adversary().hospital_ids
    states = last_states(reports)
    assert states.pop(attacker)[0] is state
    assert words in reports[-1].hospitals[experiment.hospital_ids().index(attacker)].reason
    assert {found for found, _ in states.values()} == {HospitalState.REPORTED}
    assert np.isfinite(weights).all()
    assert len(reports) == experiment.rounds


def test_an_actor_that_lies_in_its_answer_is_named_and_left_out(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    experiment = small.replace(attack="none", byzantine=0, rule="mean")
    plan = LyingPlan.of(cohort_plan(experiment, shards, state_folder=tmp_path), liar="hospital-02", lie="zeros")
    ray.cloudpickle.register_pickle_by_value(lying_answers)
    cohort = RayCohort(plan, num_hosts=1, deadline_s=120)
    reports = list(ServerRole(experiment, shards, cohort).reports())
    cohort.close()
    assert len(reports) == experiment.rounds
    for report in reports:
        liar = next(record for record in report.without_answer if record.hospital_id == "hospital-02")
        assert REFUSED_LIES["zeros"][1] in liar.reason
        assert np.isfinite([report.loss, report.accuracy]).all()
        assert sum(record.judged > 0 for record in report.hospitals) >= 3


@dataclass(frozen=True)
class SendTheirNumbers:
    """A collusion of which each attacker sends its place among them in every coordinate, ``more`` too often."""

    more: int = 0

    def collude(self, honest: torch.Tensor, situation: Situation) -> torch.Tensor:
        numbers = torch.arange(situation.num_byzantine + self.more, dtype=honest.dtype)
        return numbers[:, None].repeat(1, honest.shape[1])


def test_every_colluding_attacker_sends_its_own_update_in_every_cohort(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    experiment = small.replace(attack=SendTheirNumbers(), byzantine=2, algorithm="fedavg")
    send_by_value(experiment)
    plans = [cohort_plan(experiment, shards, state_folder=tmp_path / name) for name in ("process", "ray")]
    cohorts = [InProcessCohort(plans[0]), RayCohort(plans[1], num_hosts=2, deadline_s=120)]
    weights = ServerRole(experiment, shards, cohorts[0]).outcome().weights
    for cohort in cohorts:
        replies = {reply.hospital_id: reply for reply in cohort.train(weights, 1)}
        assert sorted(replies) == list(experiment.hospital_ids())
        for number, attacker in enumerate(experiment.adversary().hospital_ids):
            update = replies[attacker].update
            assert update is not None
            assert update.hospital_id == attacker
            assert update.delta.shape == weights.shape
            assert set(update.delta) == {number}
    cohorts[1].close()


def test_colluding_attackers_that_send_the_same_share_one_array(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    experiment = small.replace(attack="alie(z=1.0)", byzantine=2)
    cohort = InProcessCohort(cohort_plan(experiment, shards, state_folder=tmp_path))
    weights = ServerRole(experiment, shards, cohort).outcome().weights
    updates = {reply.hospital_id: reply.update for reply in cohort.train(weights, 1)}
    one, two = (updates[attacker] for attacker in experiment.adversary().hospital_ids)
    assert one is not None
    assert two is not None
    assert one.delta is two.delta


def test_a_collusion_that_forges_too_many_updates_is_recorded_and_stops_nothing(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    experiment = small.replace(attack=SendTheirNumbers(more=1), byzantine=2, rule="mean", rounds=1)
    _, reports = from_one_host(experiment, shards, tmp_path)
    states = last_states(reports)
    for attacker in experiment.adversary().hospital_ids:
        state, reason = states.pop(attacker)
        assert state is HospitalState.CRASHED
        assert "one update for all or each of 2 attackers, got 3" in reason
    assert {state for state, _ in states.values()} == {HospitalState.REPORTED}


def test_a_hostile_update_is_recorded_as_such(small: Experiment, shards: Path, tmp_path: Path) -> None:
    experiment = small.replace(attack="scaling(scale=100.0)", rule="multi_krum", f=1)
    _, reports = from_one_host(experiment, shards, tmp_path)
    (attacker,) = experiment.adversary().hospital_ids
    assert last_states(reports)[attacker][0] is HospitalState.HOSTILE


@pytest.mark.slow
def test_a_late_hospital_is_recorded_and_freed_for_the_next_round(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    experiment = small.replace(model=SlowCnn(seconds=1.0), deadline_s=4.0, batch_size=2)
    send_by_value(experiment)
    cohort = RayCohort(cohort_plan(experiment, shards, state_folder=tmp_path), num_hosts=1, deadline_s=4.0)
    weights = ServerRole(experiment, shards, cohort).outcome().weights
    late = list(cohort.train(weights, 1))
    assert {reply.state for reply in late} == {HospitalState.LATE}
    assert "nothing came within 4 s" in late[0].reason
    assert cohort.process_of("hospital-00") > 0  # it answers: the training that came too late was given up
    cohort.close()


def test_a_killed_hospital_is_crashed_in_this_round_and_back_in_the_next(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    experiment = small.replace(model=SlowCnn(seconds=0.2), batch_size=4)
    send_by_value(experiment)
    plan = cohort_plan(experiment, shards, state_folder=tmp_path)
    cohort = RayCohort(plan, num_hosts=2, deadline_s=120)
    role = ServerRole(experiment.replace(rounds=2), shards, cohort)
    victim = cohort.process_of("hospital-00")
    rounds = role.reports()

    killer = threading.Timer(2.0, os.kill, (victim, signal.SIGKILL))
    killer.start()
    first = next(rounds)
    killer.join()
    states = {record.hospital_id: record.state for record in first.hospitals}
    assert states["hospital-00"] is HospitalState.CRASHED
    assert "process died" in first.hospitals[0].reason
    assert HospitalState.REPORTED in states.values()
    wait_for(cohort, "hospital-00")  # no round does, and on a busy machine a process is slow to start
    second = next(rounds)
    assert {record.state for record in second.hospitals} == {HospitalState.REPORTED}
    cohort.close()


def test_no_picture_leaves_a_hospital(small: Experiment, shards: Path, tmp_path: Path) -> None:
    """Everything that a hospital returns is far smaller than its scans, and of no picture's shape."""
    cohort = RayCohort(cohort_plan(small, shards, state_folder=tmp_path), num_hosts=2, deadline_s=120)
    weights = ServerRole(small, shards, cohort).outcome().weights
    returned = [reply.update for reply in cohort.train(weights, 1)]
    answers = cohort.evaluate(weights, [Role.TEST])
    arrays = [value for item in [*returned, *answers] for value in vars(item).values() if isinstance(value, np.ndarray)]
    assert {array.shape for array in arrays if array.ndim > 1} == {(len(a.labels), 2) for a in answers}
    assert all(array.size == weights.size for array in arrays if array.ndim == 1 and array.dtype == np.float32)
    cohort.close()


def test_statistics_of_hospitals_in_actors_are_those_of_one_process_and_no_picture_leaves_them(
    small: Experiment, shards: Path
) -> None:
    here = InProcessEngine().statistics(small, shards)
    there = RayEngine(num_hosts=2).statistics(small, shards)
    assert there == here
    assert [site.hospital_id for site in there] == list(small.hospital_ids())
    assert all(len(pickle.dumps(site)) < small.size**2 for site in there)


def test_hospitals_whose_actor_is_gone_are_told_of_and_the_others_answer(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    cohort = RayCohort(cohort_plan(small, shards, state_folder=tmp_path), num_hosts=3, deadline_s=120)
    gone = cohort.host_of["hospital-01"]
    ray.kill(gone, no_restart=True)
    told = {site.hospital_id: bool(site.failure) for site in cohort.statistics()}
    cohort.close()
    assert told == {name: host is gone for name, host in cohort.host_of.items()}
    assert 0 < sum(told.values()) < 5


@pytest.mark.slow
def test_who_has_withdrawn_is_not_asked_in_any_engine_and_the_bits_are_the_same(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    experiment = small.replace(rule="mean", attack="none", rounds=1)
    gone = [Withdrawal("hospital-02", 0)]
    seen = []
    for place, engine in (("process", InProcessEngine()), ("ray", RayEngine(num_hosts=2))):
        with engine.launch(experiment, shards, state_folder=tmp_path / place, withdrawn=gone) as federation:
            (report,) = federation.reports()
            seen.append(federation.outcome().weights.tobytes())
        assert report.hospitals[-1].hospital_id == "hospital-02"
        assert report.hospitals[-1].state is HospitalState.WITHDRAWN
        assert not (tmp_path / place / "hospital-02.safetensors").exists()
    assert seen[0] == seen[1]


def test_a_users_own_rule_travels_to_the_server_from_behind_a_mixing_step(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "my_rules.py").write_text(
        "from dataclasses import dataclass\n"
        "from fedplatform.federated.aggregation import Aggregator, Mean\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Aggregator):\n"
        "    def aggregate(self, deltas, evidence):\n"
        "        return Mean()(deltas, evidence)\n"
    )
    experiment = small.replace(rule=f"nnm+{tmp_path / 'my_rules.py'}:Mine", f=1, rounds=1)
    _, reports = weights_and_reports(RayEngine(num_hosts=1), experiment, shards, tmp_path / "state")
    assert len(reports) == 1


def test_a_cluster_without_a_gpu_is_told_of_in_one_line(small: Experiment) -> None:
    with pytest.raises(ComputeError, match=r"^--device cuda: this cluster has no GPU; --device auto takes what"):
        RayEngine().computes_on(small.replace(device="cuda"))
    assert RayEngine().computes_on(small) == ""
