"""A federation behind secure aggregation: the same in every cohort, no single update in sight, drop-outs survived."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from slow_hospitals import SlowCnn, wait_for

from actors.cohort import RayCohort
from actors.engine import RayEngine, send_by_value
from actors.masked import MaskedHospitalHost, RayMaskedHospitals
from fedplatform.attacks.poisoning.attack import Situation
from fedplatform.core.messages import HospitalState, Reply, Update
from fedplatform.experiments.engine import InProcessEngine, ServerRole, cohort_plan, in_process_cohort
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.federated.cohort import InProcessCohort, InProcessMaskedHospitals
from fedplatform.federated.secure import Grouped, GroupedCohort
from fedplatform.federated.secure.groups import Seating
from fedplatform.federated.secure.masked_hospital import FIXED_POINT, Request
from fedplatform.federated.secure.masked_messages import MaskedVector


@pytest.fixture(scope="module")
def grouped(small: Experiment) -> Experiment:
    """The small experiment, its five hospitals in groups of two and three."""
    return small.replace(privacy="grouped(size=2)", rule="weighted_mean")


def cohort_of(experiment: Experiment, shards: Path, folder: Path) -> GroupedCohort:
    cohort = in_process_cohort(experiment, shards, state_folder=folder)
    assert isinstance(cohort, GroupedCohort)
    return cohort


def start_weights(experiment: Experiment, shards: Path, folder: Path) -> np.ndarray:
    cohort = InProcessCohort(cohort_plan(experiment.replace(privacy="none"), shards, state_folder=folder))
    return ServerRole(experiment, shards, cohort).outcome().weights


def test_every_member_has_the_mean_of_its_group_to_the_fixed_point_step(
    grouped: Experiment, shards: Path, tmp_path: Path
) -> None:
    weights = start_weights(grouped, shards, tmp_path / "start")
    plan = cohort_plan(grouped.replace(privacy="none"), shards, state_folder=tmp_path / "plain")
    plain = {reply.hospital_id: reply.update for reply in InProcessCohort(plan).train(weights, 1)}
    replies = list(cohort_of(grouped, shards, tmp_path / "grouped").train(weights, 1))
    assert sorted(reply.hospital_id for reply in replies) == list(grouped.hospital_ids())
    groups = {reply.update.group for reply in replies if reply.update}
    assert sorted(len(group) for group in groups) == [2, 3]
    for reply in replies:
        assert reply.update is not None
        assert reply.hospital_id in reply.update.group
        mean = np.mean([plain[name].delta for name in reply.update.group], axis=0, dtype=np.float64)
        # Half a step a member, and what float32 rounds away.
        np.testing.assert_allclose(reply.update.delta, mean, rtol=1e-6, atol=FIXED_POINT.step)


def test_claims_and_losses_of_single_hospitals_stay_at_home(grouped: Experiment, shards: Path, tmp_path: Path) -> None:
    weights = start_weights(grouped, shards, tmp_path / "start")
    for reply in cohort_of(grouped, shards, tmp_path / "grouped").train(weights, 1):
        assert reply.update is not None
        assert reply.update.num_examples == 1
        assert np.isnan(reply.update.train_loss)


class Overheard:
    """Hospitals in this process, with an ear at the door: every answer that leaves them is kept."""

    def __init__(self, hospitals: InProcessMaskedHospitals) -> None:
        self.hospitals = hospitals
        self.answers: list[object] = []
        self.silent: dict[Request, frozenset[str]] = {}

    @property
    def hospital_ids(self) -> tuple[str, ...]:
        return self.hospitals.hospital_ids

    def ask(self, request: Request, content: Mapping[str, tuple[object, ...]]) -> Iterator[tuple[str, Any]]:
        lost = self.silent.get(request, frozenset())
        for name, answer in self.hospitals.ask(request, {who: content[who] for who in content if who not in lost}):
            self.answers.append(answer)
            yield name, answer
        for name in lost & content.keys():
            yield name, Reply(name, HospitalState.LATE, reason="lost")

    def train(self, weights: np.ndarray, round_number: int, hospital_ids: Sequence[str]) -> dict[str, Reply]:
        replies = self.hospitals.train(weights, round_number, hospital_ids)
        self.answers += replies.values()
        return replies

    def evaluate(self, weights: np.ndarray, roles: Sequence[Any]) -> list[Any]:
        return self.hospitals.evaluate(weights, roles)


def overheard(experiment: Experiment, shards: Path, folder: Path) -> tuple[Overheard, GroupedCohort]:
    ear = Overheard(InProcessMaskedHospitals(cohort_plan(experiment, shards, state_folder=folder)))
    assert experiment.privacy is not None
    return ear, GroupedCohort(ear, experiment.privacy, seed=experiment.seed)


@pytest.mark.parametrize("attack", ["none", "sign_flip", "ipm"])
def test_nothing_that_leaves_a_hospital_holds_its_update(
    grouped: Experiment, shards: Path, tmp_path: Path, attack: str
) -> None:
    experiment = grouped.replace(attack=attack)
    weights = start_weights(experiment, shards, tmp_path / "start")
    ear, cohort = overheard(experiment, shards, tmp_path)
    list(cohort.train(weights, 1))
    own = {name: hospital.own_update.delta for name, hospital in ear.hospitals._hospitals.items()}
    assert not [answer for answer in ear.answers if isinstance(answer, Update)]
    assert not [answer for answer in ear.answers if isinstance(answer, Reply) and answer.update is not None]
    vectors = [answer for answer in ear.answers if isinstance(answer, MaskedVector)]
    assert len(vectors) == experiment.hospitals
    for vector in vectors:
        read = FIXED_POINT.decode(vector.values)
        assert abs(np.corrcoef(read, own[vector.hospital_id])[0, 1]) < 0.1


@pytest.mark.parametrize("step", ["advertise", "share", "mask", "reveal"])
def test_a_hospital_that_falls_silent_at_any_step_drops_out_of_its_group_and_stops_nothing(
    grouped: Experiment, shards: Path, tmp_path: Path, step: Request
) -> None:
    weights = start_weights(grouped, shards, tmp_path / "start")
    ear, cohort = overheard(grouped, shards, tmp_path)
    threes = [reply.update.group for reply in cohort.train(weights, 1) if reply.update and len(reply.update.group) == 3]
    lost = threes[0][1]
    ear.silent = {step: frozenset({lost})}
    replies = {reply.hospital_id: reply for reply in cohort.train(weights, 1)}
    # Its masked vector had arrived before it fell silent at the last step: it is in the sum.
    assert (replies[lost].state is HospitalState.REPORTED) == (step == "reveal")
    others = [reply for name, reply in replies.items() if name != lost]
    assert {reply.state for reply in others} == {HospitalState.REPORTED}
    for reply in others:
        assert reply.update is not None
        mean = np.mean(
            [ear.hospitals._hospitals[name].own_update.delta for name in reply.update.group], axis=0, dtype=np.float64
        )
        np.testing.assert_allclose(reply.update.delta, mean, rtol=1e-6, atol=FIXED_POINT.step)


def test_a_group_that_loses_too_many_stays_closed_and_says_so(
    grouped: Experiment, shards: Path, tmp_path: Path
) -> None:
    weights = start_weights(grouped, shards, tmp_path / "start")
    ear, cohort = overheard(grouped, shards, tmp_path)
    pair = next(r.update.group for r in cohort.train(weights, 1) if r.update and len(r.update.group) == 2)
    ear.silent = {"mask": frozenset(pair[:1])}
    replies = {reply.hospital_id: reply for reply in cohort.train(weights, 1)}
    assert replies[pair[1]].update is None
    assert "stays closed: 1 of 2 members arrived" in replies[pair[1]].reason
    assert sum(reply.update is not None for reply in replies.values()) == 3


def test_whom_the_rule_shut_out_is_grouped_with_nobody_else(grouped: Experiment, shards: Path, tmp_path: Path) -> None:
    weights = start_weights(grouped, shards, tmp_path / "start")
    cohort = cohort_of(grouped, shards, tmp_path)
    replies = {reply.hospital_id: reply for reply in cohort.seated(Seating(("hospital-02",))).train(weights, 1)}
    assert replies["hospital-02"].state is HospitalState.HOSTILE
    assert "too few to make one of 2" in replies["hospital-02"].reason
    assert {len(r.update.group) for name, r in replies.items() if r.update} == {2}


def test_an_attacker_knows_its_group_and_slanders_only_where_its_victim_is_in_it(
    grouped: Experiment, shards: Path, tmp_path: Path
) -> None:
    experiment = grouped.replace(attack="slander_in_groups(victim=1, scale=2)")
    adversary = experiment.adversary()
    (attacker,), victim = adversary.hospital_ids, adversary.honest_ids[1]
    weights = start_weights(grouped, shards, tmp_path / "start")
    plan = cohort_plan(experiment.replace(privacy="none"), shards, state_folder=tmp_path / "plain")
    met = set()
    ear, cohort = overheard(experiment, shards, tmp_path)
    for number in range(1, 5):
        plain = next(r.update for r in InProcessCohort(plan).train(weights, number) if r.hospital_id == attacker)
        replies = {reply.hospital_id: reply.update for reply in cohort.train(weights, number)}
        beside = victim in replies[attacker].group
        sent = ear.hospitals._hospitals[attacker].own_update.delta
        np.testing.assert_array_equal(sent, (-2 if beside else 1) * plain.delta)
        met.add(beside)
    assert met == {True, False}


@dataclass(frozen=True)
class SendsNonsense:
    """An attacker whose update is no number."""

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        return torch.full_like(own, float("nan"))


@pytest.mark.parametrize("engine", ["process", pytest.param("ray", marks=pytest.mark.slow)])
def test_an_update_that_the_sum_cannot_hold_is_recorded_and_stops_nothing(
    grouped: Experiment, shards: Path, tmp_path: Path, engine: str, request: pytest.FixtureRequest
) -> None:
    if engine == "ray":
        request.getfixturevalue("ray_here")
    experiment = grouped.replace(attack=SendsNonsense(), rounds=1)
    runner = InProcessEngine() if engine == "process" else RayEngine(num_hosts=1)
    with runner.launch(experiment, shards, state_folder=tmp_path) as federation:
        (report,) = list(federation.reports())
    (attacker,) = experiment.adversary().hospital_ids
    record = next(record for record in report.hospitals if record.hospital_id == attacker)
    assert record.state is HospitalState.MALFORMED
    assert "takes entries below" in record.reason
    assert np.isfinite(report.loss)


def test_groups_of_which_there_are_not_two_are_refused_before_anybody_trains(small: Experiment) -> None:
    with pytest.raises(ExperimentError, match="needs at least 6 hospitals in a round, got 5"):
        small.replace(privacy="grouped(size=3)")
    with pytest.raises(ExperimentError, match="n=2"):
        small.replace(privacy="grouped(size=2)", rule="trimmed_mean(f=1)")
    with pytest.raises(ExperimentError, match="size >= 2"):
        small.replace(privacy="grouped(size=1)")
    six = small.replace(privacy="grouped(clip=1.0, noise=0.5)", hospitals=6, rule="mean", data="lesions")
    assert six.privacy == Grouped(clip=1.0, noise=0.5)


def test_noise_of_differential_privacy_reaches_the_mean_of_a_group(
    grouped: Experiment, shards: Path, tmp_path: Path
) -> None:
    weights = start_weights(grouped, shards, tmp_path / "start")
    experiment = grouped.replace(privacy="grouped(size=2, clip=0.001, noise=1000.0)")
    for reply in cohort_of(experiment, shards, tmp_path / "noisy").train(weights, 1):
        assert reply.update is not None
        # At least one clip times noise on the sum; a group of three has the noise of three, meant for two.
        spread = reply.update.delta.std() * len(reply.update.group)
        assert 0.9 < spread < 1.1 * np.sqrt(1.5)


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    ("attack", "rule"),
    [pytest.param("ipm", "weighted_mean", marks=pytest.mark.slow), ("sign_flip", "trust")],
)
def test_one_process_and_many_hosts_give_the_same_bits_behind_masks(
    grouped: Experiment, shards: Path, tmp_path: Path, attack: str, rule: str
) -> None:
    experiment = grouped.replace(attack=attack, rule=rule)
    found = []
    for engine in (InProcessEngine(), RayEngine(num_hosts=2)):
        with engine.launch(experiment, shards, state_folder=tmp_path / type(engine).__name__) as federation:
            reports = list(federation.reports())
            found.append(federation.outcome().weights)
        assert {record.state for record in reports[0].hospitals} == {HospitalState.REPORTED}
        assert all(0 <= record.reputation <= 1 for record in reports[-1].hospitals)
    assert found[0].tobytes() == found[1].tobytes()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_hospital_killed_in_mid_round_drops_out_and_no_host_gives_a_single_update(
    grouped: Experiment, shards: Path, tmp_path: Path
) -> None:
    experiment = grouped.replace(model=SlowCnn(seconds=0.2), batch_size=8, privacy="grouped(size=2)")
    send_by_value(experiment)
    plan = cohort_plan(experiment, shards, state_folder=tmp_path)
    actors = RayCohort(plan, num_hosts=4, deadline_s=120, host=MaskedHospitalHost)
    assert experiment.privacy is not None
    cohort = GroupedCohort(RayMaskedHospitals(actors, plan, deadline_s=120), experiment.privacy, seed=experiment.seed)
    weights = start_weights(experiment.replace(model="small_cnn(width=4)"), shards, tmp_path / "start")
    victim = actors.process_of("hospital-03")
    killer = threading.Timer(1.5, os.kill, (victim, signal.SIGKILL))
    killer.start()
    first = {reply.hospital_id: reply for reply in cohort.train(weights, 1)}
    killer.join()
    assert first["hospital-03"].state is HospitalState.CRASHED
    assert "process died" in first["hospital-03"].reason
    opened = {name for name, reply in first.items() if reply.update is not None}
    closed = {name for name, reply in first.items() if "stays closed" in reply.reason}
    assert opened
    assert opened | closed | {"hospital-03"} == set(first)
    wait_for(actors, "hospital-03")
    second = list(cohort.train(weights, 2))
    assert {reply.state for reply in second} == {HospitalState.REPORTED}
    with pytest.raises(ray.exceptions.RayTaskError, match="gives no single update"):
        ray.get(actors.host_of["hospital-00"].train.remote("hospital-00", weights, 3))
    with pytest.raises(ray.exceptions.RayTaskError, match="gives no single update"):
        ray.get(actors.host_of["hospital-00"].show_to_attackers.remote("hospital-00"))
    actors.close()
