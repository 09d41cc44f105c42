"""The gateway over HTTPS: what it lets in, what it turns away, and that it may die in the middle of an upload."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from authority import make_certificate
from endpoint_process import free_port
from outside_helpers import Forger, Silent, answer, keys_of, reasons, roster_of, session, update

from benchmarks.faults import Machines
from fedplatform.core.messages import Update
from fedplatform.core.settings import ExperimentError
from fedplatform.outside.agent import Agent
from fedplatform.outside.body import encode_update, encode_weights
from fedplatform.outside.envelope import Envelope, Kind
from fedplatform.outside.refusal import Refusal
from fedplatform.outside.terms import Terms
from fedplatform.outside.work import CHUNK, Order

RUN = "cd" * 16
SIZE = 700_000  # weights: three pieces of an upload
KEYS = keys_of("a", "b", "stranger")


@dataclass(frozen=True)
class Gate:
    url: str
    authority: Path
    folder: Path
    server: Any
    actor: Any

    def line(self) -> Any:
        from actors.gateway.http_transport import HttpTransport

        return HttpTransport(self.url, authority=self.authority)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """A gateway for hospitals a and b on this machine, in front of its server."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from actors.gateway.application import GatewayOptions, close_gateway, open_gateway
    from actors.gateway.server_actor import RemoteGatewayServer, open_gateway_server
    from actors.http.start import prepare

    folder = tmp_path_factory.mktemp("gate")
    prepare()
    machines = Machines(nodes=0)
    ray.init(address=machines.address, log_to_driver=False, logging_level="error")
    authority, certificate, key = make_certificate(folder, "127.0.0.1")
    roster = roster_of({name: KEYS[name] for name in ("a", "b")})
    terms = Terms(run=RUN, data="none", hospitals=2, classes=("well", "ill"), channels=1, training={})
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = open_gateway_server(roster, terms, folder / "gateway", None, where=here)
    port = free_port()
    try:
        open_gateway(actor, GatewayOptions("127.0.0.1", port, roster, (str(certificate), str(key))))
        yield Gate(f"https://127.0.0.1:{port}", authority, folder / "gateway", RemoteGatewayServer(RUN), actor)
    finally:
        close_gateway()
        ray.shutdown()
        machines.stop()


def test_dozens_of_wrong_messages_over_https_change_nothing_and_each_is_written_down(gate: Gate) -> None:
    weights = np.zeros(SIZE, np.float32)
    gate.server.ask(Order(Kind.UPDATE, 2, weights, deadline_s=600))
    base = sha256(encode_weights(weights)).hexdigest()
    line = gate.line()
    token = session(line, "a", KEYS["a"])
    body = encode_update(update(SIZE, hospital_id="b"))
    of_b = Envelope.seal(
        body, key=KEYS["b"], run=RUN, launch=0, hospital_id="b", round_number=2, kind=Kind.UPDATE, base=base
    )
    forger = Forger(line, KEYS, RUN, 2, base, SIZE, token, of_b, np.random.default_rng(3))
    before = len(reasons(gate.folder / "refusals.jsonl"))
    attacks = forger.attacks()
    for reason, attack in attacks:
        with pytest.raises(Refusal) as caught:
            attack()
        assert caught.value.reason is reason, caught.value
    assert reasons(gate.folder / "refusals.jsonl")[before:] == [reason.value for reason, _ in attacks]
    for name in ("a", "b"):
        mine = encode_update(update(SIZE, hospital_id=name, fill=0.25))
        seal = {"key": KEYS[name], "run": RUN, "launch": 0, "hospital_id": name, "round_number": 2, "base": base}
        mine_of = token if name == "a" else session(line, name, KEYS[name])  # of a hospital that is here there is one
        answer(line, mine_of, Envelope.seal(mine, kind=Kind.UPDATE, **seal), mine)
    answered = gate.server.collect(10).answered
    assert {name: float(gate.server.answer(name).delta.sum()) for name in answered} == {"a": SIZE / 4, "b": SIZE / 4}


def test_a_body_larger_than_a_piece_is_turned_away_before_it_is_read(gate: Gate) -> None:
    before = len(reasons(gate.folder / "refusals.jsonl"))
    sent = requests.post(f"{gate.url}/v1/messages", data=bytes(3 * CHUNK), verify=str(gate.authority), timeout=60)
    assert (sent.status_code, sent.json()["reason"]) == (413, "oversize")
    assert reasons(gate.folder / "refusals.jsonl")[before:] == ["oversize"]


def test_pickle_is_never_read(gate: Gate, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    for path in ("sessions", "messages"):
        said = requests.post(f"{gate.url}/v1/{path}", data=pickle.dumps(Trap()), verify=str(gate.authority), timeout=60)
        assert said.status_code in (401, 422)
    assert not (tmp_path / "sprung").exists()


def test_a_server_that_nobody_vouches_for_is_not_spoken_to(gate: Gate) -> None:
    from actors.gateway.http_transport import HttpTransport

    with pytest.raises(ExperimentError, match="is not trusted"):
        HttpTransport(gate.url, authority=None).hello()


@pytest.mark.slow
def test_a_desk_killed_in_mid_upload_costs_no_round_and_the_upload_goes_on(gate: Gate, tmp_path: Path) -> None:
    before = len(reasons(gate.folder / "refusals.jsonl"))
    weights = np.ones(SIZE, np.float32)
    watcher = KillsTheGateway(gate.actor)
    agent = Agent(gate.line(), hospital_id="a", key=KEYS["a"], folder=tmp_path, watcher=watcher)
    result: list[Any] = []
    gate.server.ask(Order(Kind.UPDATE, 3, weights, deadline_s=600))
    waiting = threading.Thread(target=lambda: result.append(gate.server.collect(400)))
    waiting.start()
    working = threading.Thread(target=agent.take_part, args=(lambda _: Halves(),), daemon=True)
    working.start()
    b = encode_update(update(SIZE, hospital_id="b", round_number=3))
    while not watcher.killed:
        time.sleep(0.1)
    line, sent = gate.line(), False
    while not sent:
        try:
            base = sha256(encode_weights(weights)).hexdigest()
            seal = {"key": KEYS["b"], "run": RUN, "launch": 0, "hospital_id": "b", "round_number": 3, "base": base}
            answer(line, session(line, "b", KEYS["b"]), Envelope.seal(b, kind=Kind.UPDATE, **seal), b)
            sent = True
        except (OSError, Refusal):
            time.sleep(0.5)
    waiting.join(400)
    gate.server.finish(30)
    working.join(60)
    assert not working.is_alive()
    assert "a" in result[0].answered
    got = gate.server.answer("a")
    assert isinstance(got, Update)
    assert got.delta.tobytes() == np.full(SIZE, 0.5, np.float32).tobytes()
    assert watcher.resumed_at[0] == 0
    assert 0 not in watcher.resumed_at[1:], "what had come before was sent again"
    allowed = {"no session", "not asked for", "here already"}
    assert set(reasons(gate.folder / "refusals.jsonl")[before:]) <= allowed


class Halves:
    """A hospital whose update says half of every weight."""

    def train(self, weights: np.ndarray, round_number: int, **_: object) -> Update:
        return Update("a", round_number, weights / 2, 5, 0.5, 1.0)


class KillsTheGateway(Silent):
    """A person who pulls the server's plug when the first piece has left the house."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self._actor = actor
        self.killed = False

    def sending(self, header: Any, done: int) -> None:
        import ray

        super().sending(header, done)
        if done == CHUNK and not self.killed:
            self.killed = True
            ray.kill(self._actor, no_restart=False)
