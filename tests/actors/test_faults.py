"""Machines and processes die, disks fill, files rot, on a real cluster of several nodes: nothing is lost.

Each run here is hurt more than once, because a federation costs many seconds to start; each test looks at one wound.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from benchmarks.faults import Driver, Machines, Run, until
from fedplatform.federated.hospital_state import KEPT_ROUNDS


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """A head and two nodes for hospitals."""
    machines = Machines(nodes=2)
    yield machines
    machines.stop()
    until(lambda: not machines.left(), "the end of every process of the cluster")


# Hospitals


@pytest.fixture(scope="module")
def hurt_hospitals(machines: Machines, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """In round 2 a process of hospitals was killed, in round 3 a node of them; a fresh node joined in round 4."""
    run = Run(tmp_path_factory.mktemp("hospitals"), rounds=8, algorithm="fedavg", attack="sign_flip", rule="median")
    driver = run.start(machines.address)
    run.in_round(2, driver)
    machines.kill_actor("HospitalHost", which=1)
    run.in_round(4, driver)
    node = 0 if len(machines.hospitals_on(0)) else 1
    machines.kill_node(node)
    run.in_round(5, driver)
    machines.join(node)
    said = driver.end()
    assert driver.process.returncode == 0, said
    return run


def rounds_with(run: Run, state: str) -> list[int]:
    states = run.states()["state"]
    return sorted({number for number, _ in states[states == state].index})


def test_a_killed_hospital_process_is_missed_in_its_round_and_back_soon(hurt_hospitals: Run) -> None:
    states = hurt_hospitals.states()
    missed = rounds_with(hurt_hospitals, "crashed")[0]
    assert missed in (2, 3), "a quick round may be over before the blow falls"
    crashed = states.loc[missed][states.loc[missed]["state"] == "crashed"]
    assert 1 <= len(crashed) <= 3
    assert crashed["reason"].str.contains("its process died").all()
    assert set(states.loc[1]["state"]) <= {"reported", "hostile"}


def test_a_killed_node_is_missed_and_a_fresh_one_takes_its_hospitals(hurt_hospitals: Run) -> None:
    assert {4, 5} & set(rounds_with(hurt_hospitals, "crashed"))
    assert 8 not in rounds_with(hurt_hospitals, "crashed"), "all are back at the end"


def test_what_the_server_learned_is_what_the_others_sent_and_nothing_else(hurt_hospitals: Run) -> None:
    assert hurt_hospitals.weights() == hurt_hospitals.replayed()


# Server, driver, disk, head


@dataclass
class Ordeal:
    """What was seen while the server's side of a run was hurt."""

    run: Run
    at_server_kill: int = 0
    after_server_kill: str = ""
    at_driver_kill: int = 0
    after_corruption: str = ""
    full_disk: subprocess.CompletedProcess[str] | None = None
    kept_on_full_disk: list[str] = field(default_factory=list)
    at_head_kill: int = 0
    after_head_kill: str = ""


@pytest.fixture(scope="module")
def ordeal(machines: Machines, tmp_path_factory: pytest.TempPathFactory) -> Ordeal:
    """Server killed in round 2, driver in 3 and a checkpoint spoilt, head killed in 6; resumed every time.

    Batch normalisation stays in the hospitals, and the attacker remembers the round before: all of that is state.
    """
    run = Run(tmp_path_factory.mktemp("server"), rounds=7, attack="free_rider", rule="fltrust")
    seen = Ordeal(run)
    driver = run.start(machines.address)
    run.in_round(2, driver)
    seen.at_server_kill = run.finished_rounds()
    machines.kill_actor("Server")
    run.in_round(4, driver)
    seen.after_server_kill = driver.said()
    seen.at_driver_kill = run.finished_rounds()
    driver.kill()
    until(lambda: not machines.actors("Server") and not machines.actors("HospitalHost"), "the end of the orphans")
    newest = max((run.path / "checkpoints").glob("round-*")) / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    driver = run.resume("--address", machines.address)
    run.in_round(6, driver)
    seen.after_corruption = driver.said()
    seen.at_head_kill = run.finished_rounds()
    machines.kill_head()
    seen.after_head_kill = end_of(driver)
    last = run.resume("--engine", "local")
    said = last.end()
    assert last.process.returncode == 0, said
    return seen


def end_of(driver: Driver) -> str:
    try:
        return driver.end()
    except subprocess.TimeoutExpired:
        driver.kill()
        raise


def test_a_killed_server_is_started_again_from_its_checkpoint(ordeal: Ordeal) -> None:
    assert ordeal.at_server_kill == 1
    assert "the server actor died after round 1; it is started again from its checkpoint" in ordeal.after_server_kill
    assert "round 2/7" in ordeal.after_server_kill


def test_a_killed_driver_loses_no_finished_round_and_leaves_no_orphan(ordeal: Ordeal) -> None:
    assert ordeal.at_driver_kill >= 3
    assert "going on after round" in ordeal.after_corruption


def test_a_spoilt_checkpoint_is_said_and_the_one_before_taken(ordeal: Ordeal) -> None:
    said = " ".join(ordeal.after_corruption.split())
    assert "is damaged: the SHA-256 of state.safetensors is not the one in SHA256SUMS" in said
    number = int(said.split("going on after round ")[1].split("/")[0])
    assert number >= ordeal.at_driver_kill - 1, "one round, and no more, is done anew"


def test_a_killed_head_node_ends_the_driver_and_not_the_run(ordeal: Ordeal) -> None:
    assert ordeal.at_head_kill >= 5
    assert "go on with: fedplatform run --resume run" in ordeal.after_head_kill


def test_after_all_of_it_the_model_is_that_of_an_unbroken_run(ordeal: Ordeal) -> None:
    states = ordeal.run.states()
    assert set(states["state"]) <= {"reported", "hostile"}, "no hospital was missed in any round that counts"
    assert len(states) == 7 * 5
    assert ordeal.run.weights() == ordeal.run.replayed()
    assert KEPT_ROUNDS >= 2, "else there would have been none to fall back on"
