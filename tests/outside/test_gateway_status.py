"""Who has come through a gateway, and a roster that changes while its run goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import fedplatform
from outside_helpers import keys_of, roster_of, session

from fedplatform.core.settings import ExperimentError
from fedplatform.outside import gateway_server
from fedplatform.outside.agent import Agent
from fedplatform.outside.envelope import Kind
from fedplatform.outside.gateway_server import GatewayServer
from fedplatform.outside.gateway_status import GatewayStatus, add, revoke
from fedplatform.outside.identity import public_half
from fedplatform.outside.refusal import Reason, Refusal
from fedplatform.outside.terms import Terms
from fedplatform.outside.work import Order

KEYS = keys_of("a", "b", "new")
RUN = "ab" * 16


def gateway_at(run: Path) -> GatewayServer:
    terms = Terms(
        run=RUN, data="none", hospitals=2, classes=("well", "ill"), channels=1, transport="exact", training={}
    )
    gateway = GatewayServer(roster_of({name: KEYS[name] for name in ("a", "b")}), terms, run / "gateway")
    gateway.ask(Order(Kind.UPDATE, 2, np.zeros(5, np.float32), deadline_s=600))
    return gateway


def test_the_status_says_who_has_joined_and_who_is_awaited(tmp_path: Path) -> None:
    gateway = gateway_at(tmp_path)
    gateway.work(session(gateway, "a", KEYS["a"]))
    gateway.collect(0)  # an order that is over is told of at once
    status = GatewayStatus.read(tmp_path)
    assert (status.run, status.round_number, status.order) == (RUN, 2, "update")
    seen = {one.hospital: (one.joined, bool(one.heard), one.awaited) for one in status.hospitals}
    assert seen == {"a": (True, True, False), "b": (False, False, False)}
    gateway.ask(Order(Kind.PREDICTIONS, 2, np.zeros(5, np.float32), deadline_s=600))
    assert all(one.awaited for one in GatewayStatus.read(tmp_path).hospitals)
    shown = fedplatform(["gateway", "status", str(tmp_path)], tmp_path)
    assert "round 2: predictions" in shown.stdout
    assert "never" in next(line for line in shown.stdout.splitlines() if " b " in line)
    with pytest.raises(ExperimentError, match="has no gateway"):
        GatewayStatus.read(tmp_path / "none")


def test_a_revoked_key_opens_no_door_not_even_one_that_was_open(tmp_path: Path) -> None:
    gateway = gateway_at(tmp_path)
    token = session(gateway, "a", KEYS["a"])
    assert set(revoke(tmp_path, "a").keys) == {"b"}
    with pytest.raises(Refusal) as caught:
        gateway.work(token)
    assert caught.value.reason is Reason.NO_SESSION
    with pytest.raises(Refusal) as caught:
        session(gateway, "a", KEYS["a"])
    assert caught.value.reason is Reason.STRANGER
    again = gateway_at(tmp_path)  # a launch whose operator has forgotten to take it out of the file
    with pytest.raises(Refusal):
        session(again, "a", KEYS["a"])
    with pytest.raises(ExperimentError, match="was revoked"):
        add(tmp_path, "a", public_half(KEYS["a"]), may_come=("a", "b"))
    with pytest.raises(ExperimentError, match="has no key of a"):
        revoke(tmp_path, "a")


def test_a_new_key_is_let_in_while_the_run_goes_on(tmp_path: Path) -> None:
    gateway = gateway_at(tmp_path)
    add(tmp_path, "a", public_half(KEYS["new"]), may_come=("a", "b"))
    session(gateway, "a", KEYS["new"])
    with pytest.raises(Refusal):
        session(gateway, "a", KEYS["a"])
    for name, key, said in (
        ("c", public_half(KEYS["a"]), "has no hospital c outside"),
        ("b", public_half(KEYS["new"]), "got one key twice"),
        ("b", "ed25519:none", "64 hexadecimal digits"),
    ):
        with pytest.raises(ExperimentError, match=said):
            add(tmp_path, name, key, may_come=("a", "b"))


def test_another_version_at_the_door_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_server, "VERSION", "0.0.9")
    gateway = gateway_at(tmp_path)
    agent = Agent(gateway, hospital_id="a", key=KEYS["a"], folder=tmp_path / "a", watcher=None)  # type: ignore[arg-type]
    with pytest.raises(ExperimentError, match=r"the server runs fedplatform 0\.0\.9, this hospital"):
        agent.terms()
