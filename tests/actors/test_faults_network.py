"""Cables are pulled and lines are slow between machines with addresses of their own, and the federation goes on."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults import Run
from benchmarks.network import Network, missing_rights


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A head and two hospital nodes, or a skip that says which right is missing."""
    if missing := missing_rights():
        pytest.skip(missing)
    network = None
    with tempfile.TemporaryDirectory(prefix="n") as folder:  # a short path: that of a socket of Ray has 107 characters
        try:
            network = Network(Path(folder), nodes=2)
            yield network
        finally:
            if network:
                network.remove()


@pytest.fixture(scope="module")
def cut_off(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Round 2 over a slow line; in round 3 a cable out and in again; in round 4 one out until the node is given up.

    It is put back in the same or the next round, and the node's supervisor starts Ray again.
    """
    run = Run(
        tmp_path_factory.mktemp("cut"), rounds=8, algorithm="fedavg", attack="sign_flip", rule="median", deadline_s=90
    )
    driver = run.start(network.address, prefix=network.on_the_head)
    run.in_round(2, driver)
    network.slow_down(2, "1mbit")
    run.in_round(3, driver)
    network.speed_up(2)
    network.cut(2)
    time.sleep(1)
    network.heal(2)
    run.in_round(4, driver)
    network.cut(2)
    run.in_round(5, driver)
    network.heal(2)
    network.join(2)
    said = driver.end()
    assert driver.process.returncode == 0, said
    return run


def test_over_a_slow_line_everything_arrives_later(cut_off: Run) -> None:
    assert set(cut_off.states().loc[2]["state"]) <= {"reported", "hostile"}


def test_a_cable_that_is_put_back_at_once_costs_nothing(cut_off: Run) -> None:
    assert set(cut_off.states().loc[3]["state"]) <= {"reported", "hostile"}


def test_a_machine_behind_a_cut_cable_is_missed_until_it_joins_again(cut_off: Run) -> None:
    states = cut_off.states()
    missed = states.loc[4][~states.loc[4]["state"].isin(["reported", "hostile"])]
    assert 1 <= len(missed) <= 3
    assert missed["reason"].str.len().min() > 0
    assert set(states.loc[8]["state"]) <= {"reported", "hostile"}, "all are back at the end"


def test_what_the_server_learned_over_the_broken_network_is_what_arrived(cut_off: Run) -> None:
    assert cut_off.weights() == cut_off.replayed()
