"""Hospitals outside: what is not theirs, not now or no update changes nothing; what is, is as if they were inside."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from lying_answers import REFUSED_LIES
from outside_helpers import Forger, Silent, answer, keys_of, reasons, roster_of, session, update
from PIL import Image
from safetensors.numpy import load, save
from shapes import FINDINGS, findings, png, scans

import fedplatform as fp
from fedplatform.cli import fedplatform
from fedplatform.core.compute import Compute
from fedplatform.core.messages import HospitalState, Predictions, Update
from fedplatform.core.private_files import OwnedFileError
from fedplatform.data.error import DataError
from fedplatform.data.shards import Manifest
from fedplatform.data.splits import Role
from fedplatform.experiments.engine import InProcessEngine, ServerRole, cohort_plan
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.run import partition_data
from fedplatform.experiments.weights import START, Weights, write_start
from fedplatform.federated import deadline
from fedplatform.federated.answers import taken
from fedplatform.federated.cohort import InProcessCohort
from fedplatform.federated.hospital_state import Launch
from fedplatform.federated.transport import TRANSPORTS, TransportName
from fedplatform.learning.training import Trainer
from fedplatform.outside.agent import Agent, GatewayTransport, Unreachable
from fedplatform.outside.body import (
    decode_predictions,
    decode_update,
    decode_weights,
    encode_predictions,
    encode_update,
    encode_weights,
    update_bytes,
)
from fedplatform.outside.envelope import Envelope, Kind
from fedplatform.outside.gateway_server import GatewayServer, run_id
from fedplatform.outside.identity import Roster, make_key, read_key
from fedplatform.outside.membership import Membership
from fedplatform.outside.outside_cohort import JoinedCohort, OutsideCohort
from fedplatform.outside.own_shard import own_shard
from fedplatform.outside.refusal import Reason, Refusal
from fedplatform.outside.terms import Terms
from fedplatform.outside.work import Order, State, Work

RUN = "ab" * 16
SIZE = 50
KEYS = keys_of("a", "b", "stranger")
OUTSIDE = ("hospital-03", "hospital-04")


def gateway_at(folder: Path, transport: TransportName = "exact") -> GatewayServer:
    """A gateway for hospitals a and b, where round 2 asks for updates of 50 weights."""
    terms = Terms(
        run=RUN, data="none", hospitals=2, classes=("well", "ill"), channels=1, transport=transport, training={}
    )
    gateway = GatewayServer(roster_of({name: KEYS[name] for name in ("a", "b")}), terms, folder)
    gateway.ask(Order(Kind.UPDATE, 2, np.zeros(SIZE, np.float32), deadline_s=600))
    return gateway


def base() -> str:
    return sha256(encode_weights(np.zeros(SIZE, np.float32))).hexdigest()


def signed(name: str, body: bytes) -> Envelope:
    return Envelope.seal(
        body, key=KEYS[name], run=RUN, launch=0, hospital_id=name, round_number=2, kind=Kind.UPDATE, base=base()
    )


def test_a_thousand_wrong_messages_change_nothing_and_each_is_written_down_with_its_reason(tmp_path: Path) -> None:
    gateway = gateway_at(tmp_path)
    random = np.random.default_rng(7)
    body = encode_update(update(SIZE, hospital_id="b"))
    answer(gateway, session(gateway, "b", KEYS["b"]), signed("b", body), body)
    token = session(gateway, "a", KEYS["a"])
    forger = Forger(gateway, KEYS, RUN, 2, base(), SIZE, token, signed("b", body), random)
    attacks = forger.attacks()
    expected = []
    for number in range(1000):
        reason, attack = attacks[number] if number < len(attacks) else attacks[int(random.integers(len(attacks)))]
        expected.append(reason.value)
        with pytest.raises(Refusal) as caught:
            attack()
        assert caught.value.reason is reason, caught.value
    assert reasons(tmp_path / "refusals.jsonl") == expected
    assert set(Reason) == {Reason(name) for name in Counter(expected)}, "every reason was met"
    mine = encode_update(update(SIZE, fill=-2.0))
    answer(gateway, token, signed("a", mine), mine)
    gateway.collect(0)
    for name, sent in (("a", update(SIZE, fill=-2.0)), ("b", update(SIZE, hospital_id="b"))):
        got = gateway.answer(name)
        assert isinstance(got, Update)
        assert np.array_equal(got.delta, sent.delta)
        assert (got.num_examples, got.train_loss, got.round_number) == (5, 0.25, 2)


def test_an_answer_is_taken_once(tmp_path: Path) -> None:
    gateway = gateway_at(tmp_path)
    body = encode_update(update(SIZE))
    token = session(gateway, "a", KEYS["a"])
    answer(gateway, token, signed("a", body), body)
    with pytest.raises(Refusal, match="answered already"):
        gateway.announce(token, signed("a", body).wire())
    assert Work.read(gateway.work(token)).state is State.WAIT


def test_an_answer_after_the_deadline_is_late_and_written_down(tmp_path: Path) -> None:
    gateway = gateway_at(tmp_path)
    body = encode_update(update(SIZE))
    token = session(gateway, "a", KEYS["a"])
    envelope = signed("a", body)
    gateway.announce(token, envelope.wire())
    gateway.collect(0)
    with pytest.raises(Refusal) as caught:
        gateway.append(token, envelope.header.digest, 0, body)
    assert caught.value.reason is Reason.LATE
    assert reasons(tmp_path / "refusals.jsonl") == ["late"]


def test_the_server_hears_of_a_malformed_update_and_of_a_silent_hospital(tmp_path: Path) -> None:
    gateway = gateway_at(tmp_path)
    broken = encode_update(update(SIZE, fill=float("nan")))
    with pytest.raises(Refusal):
        answer(gateway, session(gateway, "a", KEYS["a"]), signed("a", broken), broken)
    outside = OutsideCohort(gateway, ("a", "b"), deadline_s=0.001, launch=None)
    replies = {reply.hospital_id: reply for reply in outside.updates()}
    assert replies["a"].state is HospitalState.MALFORMED
    assert "50 NaN" in replies["a"].reason
    assert replies["b"].state is HospitalState.LATE


@pytest.mark.parametrize("lie", ["no columns", "zeros", "a NaN", "no such class", "invented scans"])
def test_a_hospital_outside_that_lies_in_its_answer_hears_one_line_and_is_left_out(tmp_path: Path, lie: str) -> None:
    gateway = gateway_at(tmp_path)
    outside = OutsideCohort(gateway, ("a", "b"), deadline_s=0.001, launch=None)
    outside.ask(Kind.PREDICTIONS, np.zeros(SIZE, np.float32), 2, (Role.TEST,))
    right = Predictions("a", Role.TEST, np.full((4, 2), 0.5, np.float32), np.array([0, 1, 0, 1]), 0.7)
    lied = replace(REFUSED_LIES[lie][0](right), hospital_id="b")
    heard = ""
    for name, told in (("a", right), ("b", lied)):
        body = encode_predictions([told])
        seal = {"key": KEYS[name], "run": RUN, "launch": 0, "round_number": 2, "kind": Kind.PREDICTIONS}
        envelope = Envelope.seal(body, **seal, hospital_id=name, base=base())
        try:
            answer(gateway, session(gateway, name, KEYS[name]), envelope, body)
        except Refusal as refusal:
            heard = str(refusal)
    answers = outside.predictions([Role.TEST])
    found = taken(answers, num_classes=2, task="multiclass", announced={}, trained={"a": 8, "b": 8}).predictions
    assert [one.hospital_id for one in found] == ["a", "b"]
    assert found[0].probabilities.tobytes() == right.probabilities.tobytes()
    assert found[1].failure
    assert not len(found[1].labels)
    if lie in ("zeros", "a NaN", "no such class"):  # what needs no look at the others is refused at the door
        assert REFUSED_LIES[lie][1] in heard
        assert "\n" not in heard


def test_who_is_silent_is_waited_for_as_long_again_as_the_others_took(tmp_path: Path) -> None:
    gateway = gateway_at(tmp_path)
    body = encode_update(update(SIZE))
    answer(gateway, session(gateway, "a", KEYS["a"]), signed("a", body), body)
    collected = gateway.collect(3600, frozenset({"b"}))  # for an hour, if it waited for b
    assert collected.answered == {"a"}
    assert collected.longest_s > 0


def test_who_is_heard_again_is_waited_for_again(tmp_path: Path) -> None:
    gateway = gateway_at(tmp_path)
    bodies = {name: encode_update(update(SIZE, hospital_id=name)) for name in ("a", "b")}
    tokens = {name: session(gateway, name, KEYS[name]) for name in bodies}
    with ThreadPoolExecutor() as threads:
        collecting = threads.submit(gateway.collect, 3600, frozenset({"b"}))
        gateway.work(tokens["b"])
        answer(gateway, tokens["a"], signed("a", bodies["a"]), bodies["a"])
        assert not wait([collecting], timeout=0.5).done, "it waits for b, which was heard"
        answer(gateway, tokens["b"], signed("b", bodies["b"]), bodies["b"])
        assert collecting.result().answered == {"a", "b"}


def test_an_absence_costs_one_deadline_and_no_more_where_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "FIRST_S", 0.3)
    monkeypatch.setattr(deadline, "LEAST_S", 3600.0)  # once anybody was heard: b would be waited for that long
    gateway = gateway_at(tmp_path)
    outside = OutsideCohort(gateway, ("a", "b"), deadline_s=0, launch=None)
    token = session(gateway, "a", KEYS["a"])
    weights = np.zeros(SIZE, np.float32)
    for number in (2, 3):
        outside.ask(Kind.UPDATE, weights, number)
        message = encode_update(update(SIZE, round_number=number))
        envelope = Envelope.seal(
            message,
            key=KEYS["a"],
            run=RUN,
            launch=0,
            hospital_id="a",
            round_number=number,
            kind=Kind.UPDATE,
            base=base(),
        )
        answer(gateway, token, envelope, message)
        replies = {reply.hospital_id: reply for reply in outside.updates()}
        assert replies["a"].state is HospitalState.REPORTED
        assert replies["b"].state is HospitalState.LATE
        assert "it is silent" in replies["b"].reason


def test_an_upload_goes_on_where_it_stopped_when_the_desk_is_started_again(tmp_path: Path) -> None:
    body = encode_update(update(SIZE))
    envelope = signed("a", body)
    first = gateway_at(tmp_path)
    token = session(first, "a", KEYS["a"])
    first.announce(token, envelope.wire())
    assert first.append(token, envelope.header.digest, 0, body[:100]) == 100
    again = gateway_at(tmp_path)
    with pytest.raises(Refusal) as caught:
        again.announce(token, envelope.wire())
    assert caught.value.reason is Reason.NO_SESSION
    token = session(again, "a", KEYS["a"])
    assert again.announce(token, envelope.wire()) == 100
    assert again.append(token, envelope.header.digest, 0, body[:100]) == 100, "a piece that is there is left alone"
    assert again.append(token, envelope.header.digest, 100, body[100:]) == len(body)
    assert again.collect(0).answered == {"a"}


def test_a_newer_order_takes_no_answer_to_the_one_before(tmp_path: Path) -> None:
    gateway = gateway_at(tmp_path)
    token = session(gateway, "a", KEYS["a"])
    body = encode_update(update(SIZE))
    gateway.ask(Order(Kind.PREDICTIONS, 2, np.zeros(SIZE, np.float32), deadline_s=600, roles=(Role.TEST,)))
    with pytest.raises(Refusal) as caught:
        answer(gateway, token, signed("a", body), body)
    assert caught.value.reason is Reason.LATE


@given(
    st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=20),
    st.integers(1, 10**9),
    st.floats(allow_nan=False),
)
def test_an_update_comes_out_of_its_message_as_it_went_in(delta: list[float], scans: int, loss: float) -> None:
    sent = Update("a", 3, np.array(delta, np.float32), scans, loss, 1.5)
    got = decode_update(encode_update(sent), hospital_id="a", round_number=3, size=len(delta))
    assert got.delta.tobytes() == sent.delta.tobytes()
    assert (got.num_examples, got.train_loss, got.seconds) == (scans, loss, 1.5)
    assert decode_weights(encode_weights(sent.delta)).tobytes() == sent.delta.tobytes()


def parts_of(transport: TransportName, **changes: np.ndarray) -> bytes:
    """An update that travels in this way, with some of its arrays changed."""
    return save({**load(encode_update(update(SIZE), TRANSPORTS[transport])), **changes})


NAN = np.full(SIZE, np.nan, np.float16)
BOMB = np.frombuffer(pa.Codec("zstd").compress(bytes(2**20)), np.uint8)


@pytest.mark.parametrize(
    ("due", "body", "reason", "sentence"),
    [
        ("half", parts_of("exact"), Reason.MALFORMED, "a message holds delta, exponent, .* got delta float32"),
        ("half", parts_of("lossless"), Reason.MALFORMED, "a message holds delta, exponent, "),
        ("half", parts_of("half", delta=NAN), Reason.MALFORMED, "finite, got 50 NaN or infinite entries of 50"),
        ("half", parts_of("half", delta=NAN[1:]), Reason.MALFORMED, r"has shape \(50,\), got \(49,\)"),
        ("half", parts_of("half", exponent=np.zeros(2, np.int8)), Reason.MALFORMED, r"exponent has shape \(1,\)"),
        ("half", bytes(2 * SIZE + 5000), Reason.OVERSIZE, "at most 4197 bytes"),
        ("lossless", parts_of("half"), Reason.MALFORMED, "a message holds delta.byte0, "),
        ("lossless", parts_of("lossless", **{"delta.byte2": BOMB}), Reason.MALFORMED, "byte2 .* unpacks to 50 bytes"),
        ("lossless", parts_of("lossless", **{"delta.byte0": BOMB[:9]}), Reason.MALFORMED, "unpacks to 50 bytes"),
        ("exact", parts_of("half"), Reason.MALFORMED, "got delta float16, exponent int8"),
    ],
)
def test_an_update_that_travels_otherwise_than_the_terms_say_is_refused(
    tmp_path: Path, due: TransportName, body: bytes, reason: Reason, sentence: str
) -> None:
    gateway = gateway_at(tmp_path, due)
    token = session(gateway, "a", KEYS["a"])
    with pytest.raises(Refusal, match=sentence) as caught:
        answer(gateway, token, signed("a", body), body)
    assert caught.value.reason is reason
    good = encode_update(update(SIZE), TRANSPORTS[due])
    answer(gateway, token, signed("a", good), good)
    gateway.collect(0)
    taken = gateway.answer("a")
    assert isinstance(taken, Update)
    assert taken.delta.tobytes() == update(SIZE).delta.tobytes(), "a half and zeros are exact in every way to travel"


@given(st.binary(max_size=300))
def test_bytes_that_are_no_message_are_refused_and_nothing_else_happens(data: bytes) -> None:
    for read in (
        Envelope.read,
        lambda found: decode_update(found, hospital_id="a", round_number=1, size=3),
        lambda found: decode_predictions(found, hospital_id="a", roles=[Role.TEST], num_classes=2),
    ):
        with pytest.raises(Refusal):
            read(data)


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        (np.full((3, 2), np.nan), [0, 1, 0]),
        (np.full((3, 2), 1.5), [0, 1, 0]),
        (np.full((3, 3), 0.3), [0, 1, 0]),
        (np.full((2, 2), 0.5), [0, 1, 0]),
        (np.full((3, 2), 0.5), [0, 2, 0]),
        (np.full((3, 2), 0.5), [0, -1, 0]),
        (np.zeros((3, 2)), [0, 1, 0]),
    ],
)
def test_predictions_that_are_none_are_refused(probabilities: np.ndarray, labels: list[int]) -> None:
    body = encode_predictions([Predictions("a", Role.TEST, probabilities.astype(np.float32), np.array(labels), 0.5)])
    with pytest.raises(Refusal) as caught:
        decode_predictions(body, hospital_id="a", roles=[Role.TEST], num_classes=2)
    assert caught.value.reason is Reason.MALFORMED


def test_the_reason_for_having_no_predictions_comes_through_as_one_harmless_line() -> None:
    failed = Predictions.failed("a", [Role.VALIDATION, Role.TEST], "ValueError; \x1b[31mread\nthe log é" + 900 * "!")
    read = decode_predictions(
        encode_predictions(failed), hospital_id="a", roles=[Role.VALIDATION, Role.TEST], num_classes=2
    )
    assert [one.role for one in read] == [Role.VALIDATION, Role.TEST]
    assert read[0].failure.startswith("ValueError;  [31mread the log é!!")
    assert len(read[1].failure) <= 300
    assert not len(read[0].labels)


def test_whoever_answers_gives_no_reason_for_not_answering() -> None:
    answers = Predictions("a", Role.TEST, np.full((2, 2), 0.5, np.float32), np.array([0, 1]), 0.5, failure="and more")
    with pytest.raises(Refusal, match="with predictions or with the reason for having none"):
        decode_predictions(encode_predictions([answers]), hospital_id="a", roles=[Role.TEST], num_classes=2)


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.key"
    public = make_key(file)
    assert file.stat().st_mode & 0o777 == 0o600
    (tmp_path / "roster.yaml").write_text(f"a: {public}\n")
    roster = Roster.load(tmp_path / "roster.yaml")
    assert roster.has_signed("a", b"said", read_key(file).sign(b"said"))
    assert not roster.has_signed("a", b"said otherwise", read_key(file).sign(b"said"))
    with pytest.raises(OwnedFileError, match="exists already"):
        make_key(file)
    file.chmod(0o644)
    with pytest.raises(OwnedFileError, match="may be read by others"):
        read_key(file)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no roster"),
        ("a: b: c", "no roster"),
        ("a: ed25519:12", "64 hexadecimal digits"),
        ("a: 12", "64 hexadecimal digits"),
        (f"a: ed25519:{'0a' * 32}\nb: ed25519:{'0a' * 32}", "one key twice"),
    ],
)
def test_a_broken_roster_is_one_line(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "roster.yaml").write_text(text)
    with pytest.raises(ExperimentError, match=complaint):
        Roster.load(tmp_path / "roster.yaml")


@pytest.fixture(scope="module")
def whole() -> Experiment:
    """Five honest hospitals and their own batch normalisation, all of them in one process."""
    return Experiment.from_settings(
        {
            "data": "fedplatform.data.lesions:Lesions(hospitals=5, patients_per_hospital=60)",
            **{"size": 32, "hospitals": 5, "byzantine": 0, "rounds": 2, "model": "small_cnn(width=4)"},
            **{"root_size": 20, "rule": "mean", "deadline_s": 300.0},
        }
    )


@pytest.fixture(scope="module")
def dealt(whole: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of all five."""
    from fedplatform.experiments.run import partition_data

    folder = tmp_path_factory.mktemp("dealt") / "shards"
    partition_data(whole, folder)
    return folder


@pytest.fixture(scope="module")
def joined(whole: Experiment) -> Experiment:
    """The same with two hospitals outside."""
    return whole.replace(outside=OUTSIDE)


@pytest.fixture(scope="module")
def servers_part(dealt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_the_others(dealt, tmp_path_factory.mktemp("server") / "shards")


def without_the_others(dealt: Path, folder: Path) -> Path:
    """What the server has of these shards: those of the three hospitals inside, and its own."""
    shutil.copytree(dealt, folder)
    manifest = Manifest.load(dealt)
    for shard in manifest.hospitals[3:]:
        (folder / shard.file).unlink()
    replace(manifest, hospitals=manifest.hospitals[:3]).save(folder)
    return folder


def terms_of(joined: Experiment, servers_part: Path, folder: Path) -> Terms:
    return Terms.of(joined, Manifest.load(servers_part), run=run_id(folder))


def agent_of(transport: GatewayTransport, name: str, key: Any, folder: Path, watcher: Silent) -> Agent:
    return Agent(
        transport,
        hospital_id=name,
        key=key,
        folder=folder,
        watcher=watcher,
        sleep=lambda s: threading.Event().wait(0.05),
    )


def membership(agent: Agent, name: str, dealt: Path, folder: Path) -> Membership:
    terms = agent.terms()
    start = agent.starting_weights(terms.start) if terms.start else None
    shard = own_shard(dealt / f"{name}.parquet", terms, folder, progress=lambda *_: None)
    return Membership(name, terms, shard, folder, start)


def test_hospitals_that_knock_in_the_same_moment_get_challenges_of_their_own(
    joined: Experiment, servers_part: Path, tmp_path: Path
) -> None:
    gateway = GatewayServer(
        roster_of(keys_of(*OUTSIDE)), terms_of(joined, servers_part, tmp_path), tmp_path / "gateway"
    )
    assert len({gateway.hello() for _ in range(200)}) == 200


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_hospitals_outside_train_the_same_model_as_if_they_were_inside(
    whole: Experiment, joined: Experiment, dealt: Path, servers_part: Path, tmp_path: Path, transport: str
) -> None:
    whole, joined = whole.replace(transport=transport), joined.replace(transport=transport)
    train_inside_and_outside(whole, joined, dealt, servers_part, tmp_path)


@pytest.mark.parametrize("task", ["multilabel", "ordinal"])
def test_hospitals_outside_learn_findings_and_grades_as_if_they_were_inside(
    whole: Experiment, tmp_path: Path, task: str
) -> None:
    labels = findings(200)
    if task == "multilabel":
        mine = fp.from_arrays(scans(labels), labels, classes=FINDINGS, groups=np.arange(200) // 2)
    else:
        mine = fp.from_arrays(scans(labels), labels.sum(axis=1), groups=np.arange(200))
    settings = {**whole.settings(), "data": mine, "task": task, "root_size": 20, "partition": "iid"}
    del settings["objective"]
    here = Experiment.from_settings(settings)
    partition_data(here, tmp_path / "shards")
    servers = without_the_others(tmp_path / "shards", tmp_path / "server")
    train_inside_and_outside(here, here.replace(outside=OUTSIDE), tmp_path / "shards", servers, tmp_path / "run")
    terms = terms_of(here.replace(outside=OUTSIDE), servers, tmp_path / "run/gateway")
    assert terms.task == task


@pytest.mark.parametrize("algorithm", ["fedbn_p", "fedavg"])
def test_hospitals_outside_start_from_the_servers_weights_and_leave_its_frozen_part_alone(
    whole: Experiment, joined: Experiment, dealt: Path, servers_part: Path, tmp_path: Path, algorithm: str
) -> None:
    torch.manual_seed(5)
    network = whole.model(channels=1, num_classes=2, size=whole.size)
    torch.save(network.state_dict(), tmp_path / "earlier.pth")
    start = {"weights": str(tmp_path / "earlier.pth"), "freeze": "0", "algorithm": algorithm}
    fitted, origin = Weights(start["weights"]).fitted(whole.model, channels=1, num_classes=2, size=whole.size)
    write_start(tmp_path / START, fitted, source="earlier.pth", origin=origin)
    whole, joined = (one.replace(**start).from_start(tmp_path / START) for one in (whole, joined))
    watchers = train_inside_and_outside(whole, joined, dealt, servers_part, tmp_path)
    sent = (tmp_path / START).read_bytes()
    assert all(watcher.start_bytes[-1] == len(sent) for watcher in watchers.values()), "each fetched them"
    assert (tmp_path / OUTSIDE[0] / run_id(tmp_path / "gateway") / START).read_bytes() == sent


def train_inside_and_outside(
    whole: Experiment, joined: Experiment, dealt: Path, servers_part: Path, folder: Path
) -> dict[str, Silent]:
    """Run ``whole`` in one process and ``joined`` through a gateway; they must end in the same bits."""
    with InProcessEngine().launch(whole, dealt, state_folder=folder / "whole") as federation:
        before, outcome = list(federation.reports()), federation.outcome()
    keys = keys_of(*OUTSIDE)
    terms = terms_of(joined, servers_part, folder / "gateway")
    start = joined.weights.kept if joined.weights else None
    gateway = GatewayServer(roster_of(keys), terms, folder / "gateway", start)
    watchers = {name: Silent() for name in OUTSIDE}
    models = {}

    def take_part(name: str) -> None:
        agent = agent_of(gateway, name, keys[name], folder / name, watchers[name])
        mine = membership(agent, name, dealt, folder / name)
        agent.take_part(mine.admit, mine.transport)
        models[name] = agent.weights

    threads = [threading.Thread(target=take_part, args=(name,)) for name in OUTSIDE]
    for thread in threads:
        thread.start()
    inside = InProcessCohort(cohort_plan(joined, servers_part, state_folder=folder / "inside"))
    outside = OutsideCohort(gateway, OUTSIDE, deadline_s=joined.deadline_s, launch=None)
    cohort = JoinedCohort(inside, outside, hospital_ids=joined.hospital_ids())
    role = ServerRole(joined, servers_part, cohort)
    reports = list(role.reports())
    gateway.finish(60)
    for thread in threads:
        thread.join(60)
    assert role.outcome().weights.tobytes() == outcome.weights.tobytes()
    assert [report.confusion for report in reports] == [report.confusion for report in before]
    for got, wanted in zip(reports[-1].hospitals, before[-1].hospitals, strict=True):
        assert (got.accuracy, got.num_examples, got.weight) == (wanted.accuracy, wanted.num_examples, wanted.weight)
    assert all(models[name].tobytes() == outcome.weights.tobytes() for name in OUTSIDE)
    assert not any(watcher.refusals or watcher.breaks for watcher in watchers.values())
    assert (folder / "gateway/refusals.jsonl").read_bytes() == b""
    return watchers


class Cable:
    """A line that is cut at a piece of an upload, while the server behind it is started again."""

    def __init__(self, make: Callable[[], GatewayServer], *, cut_at: int) -> None:
        self._make = make
        self._pieces_left = cut_at
        self.gateway = make()

    def append(self, token: str, digest: str, offset: int, piece: bytes) -> int:
        if self._pieces_left == 0:
            self._pieces_left = -1
            self.gateway = self._make()
            raise Unreachable("the cable is out")
        received = self.gateway.append(token, digest, offset, piece)
        self._pieces_left -= 1
        if self._pieces_left == -2:
            raise Unreachable("the answer is lost")
        return received

    def __getattr__(self, name: str) -> Any:
        return getattr(self.gateway, name)


def test_an_agent_survives_a_cut_a_lost_answer_and_a_new_server_in_mid_upload(
    joined: Experiment, dealt: Path, servers_part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedplatform.outside.agent.CHUNK", 4000)
    keys = keys_of("hospital-03")
    terms = terms_of(joined, servers_part, tmp_path / "gateway")
    weights = Trainer(terms.local_training(Compute("cpu"))).initial_weights
    launches = iter([Launch(1, 0), Launch(2, 0)])

    def make() -> GatewayServer:
        gateway = GatewayServer(roster_of(keys), terms, tmp_path / "gateway")
        gateway.ask(Order(Kind.UPDATE, 1, weights, deadline_s=600, launch=next(launches)))
        return gateway

    cable, watcher = Cable(make, cut_at=2), Silent()
    first = cable.gateway
    agent = agent_of(cable, "hospital-03", keys["hospital-03"], tmp_path / "a", watcher)
    mine = membership(agent, "hospital-03", dealt, tmp_path / "a")
    thread = threading.Thread(target=agent.take_part, args=(mine.admit,))
    thread.start()
    while cable.gateway is first:
        threading.Event().wait(0.1)
    cable.gateway.collect(120)
    cable.gateway.finish(30)
    thread.join(30)
    update = cable.gateway.answer("hospital-03")
    assert isinstance(update, Update)
    inside = InProcessCohort(cohort_plan(joined.replace(outside=()), dealt, state_folder=tmp_path / "inside"))
    there = next(reply for reply in inside.train(weights, 1) if reply.hospital_id == "hospital-03")
    assert there.update is not None
    assert update.delta.tobytes() == there.update.delta.tobytes()
    assert watcher.breaks == 2
    assert watcher.resumed_at == [0, 4000, 8000, 8000, 12000, len(encode_update(update))], "a byte was sent twice"
    assert [refusal.reason for refusal in watcher.refusals] == [Reason.STALE]
    assert reasons(tmp_path / "gateway/refusals.jsonl") == ["no session", "stale"]


def test_an_agent_stops_sending_what_is_no_update(
    joined: Experiment, dealt: Path, servers_part: Path, tmp_path: Path
) -> None:
    keys = keys_of("hospital-03")
    terms = terms_of(joined, servers_part, tmp_path / "gateway")
    gateway = GatewayServer(roster_of(keys), terms, tmp_path / "gateway")
    weights = Trainer(terms.local_training(Compute("cpu"))).initial_weights
    weights[:] = np.nan  # so is whatever is trained from them
    gateway.ask(Order(Kind.UPDATE, 1, weights, deadline_s=600))
    watcher = Silent()
    agent = agent_of(gateway, "hospital-03", keys["hospital-03"], tmp_path / "a", watcher)
    thread = threading.Thread(target=agent.take_part, args=(membership(agent, "hospital-03", dealt, tmp_path).admit,))
    thread.start()
    while not watcher.refusals:
        threading.Event().wait(0.1)
    assert gateway.collect(1).complaints.keys() == {"hospital-03"}
    gateway.finish(30)
    thread.join(30)
    assert [refusal.reason for refusal in watcher.refusals] == [Reason.MALFORMED]


def test_a_persons_own_folder_becomes_a_shard_once(joined: Experiment, servers_part: Path, tmp_path: Path) -> None:
    terms = terms_of(joined, servers_part, tmp_path / "gateway")
    random = np.random.default_rng(0)
    scans = tmp_path / "scans"
    for number in range(40):
        file = scans / ("ill", "well")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32), np.uint8)).save(file)
    other = terms.model_copy(update={"classes": ("ill", "well")})
    shard = own_shard(scans, other, tmp_path / "own", progress=lambda *_: None)
    written = shard.path.stat().st_mtime_ns
    again = own_shard(scans, other, tmp_path / "own", progress=lambda *_: None)
    assert again.path.stat().st_mtime_ns == written
    assert sum(len(again.labels(role)) for role in Role) == 40
    assert not len(again.labels(Role.ROOT))
    with pytest.raises(DataError, match="this data's ill, well"):
        own_shard(scans, terms, tmp_path / "other", progress=lambda *_: None)


def test_a_site_with_one_of_the_classes_is_numbered_by_its_name(
    joined: Experiment, servers_part: Path, tmp_path: Path
) -> None:
    terms = terms_of(joined, servers_part, tmp_path / "gateway")
    random = np.random.default_rng(0)
    for number in range(20):
        file = tmp_path / "scans" / "well" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32), np.uint8)).save(file)
    other = terms.model_copy(update={"classes": ("ill", "well")})
    shard = own_shard(tmp_path / "scans", other, tmp_path / "own", progress=lambda *_: None)
    assert shard.classes == ("ill", "well")
    assert set(shard.labels(Role.TRAIN)) == {1}


def parquet_of(file: Path, **columns: list[object]) -> Path:
    pq.write_table(
        pa.table({"image": [png(one) for one in scans(findings(len(columns["label_disc"])))], **columns}), file
    )
    return file


def test_a_hospital_of_a_single_scan_or_of_a_class_that_few_have_joins(
    joined: Experiment, servers_part: Path, tmp_path: Path
) -> None:
    terms = terms_of(joined, servers_part, tmp_path / "gateway").model_copy(update={"classes": ("ill", "well")})
    random = np.random.default_rng(0)
    for counts in ({"ill": 1}, {"ill": 1, "well": 9}, {"ill": 2, "well": 2}):
        place = tmp_path / "-".join(f"{name}{count}" for name, count in counts.items())
        for name, count in counts.items():
            for number in range(count):
                file = place / "scans" / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (32, 32), np.uint8)).save(file)
        shard = own_shard(place / "scans", terms, place / "own", progress=lambda *_: None)
        assert {0} <= set(shard.labels(Role.TRAIN).tolist())
        hospital = Membership("hospital-03", terms, shard, place).admit(None)
        weights = Trainer(terms.local_training(Compute("cpu"))).initial_weights
        assert np.isfinite(hospital.train(weights, 1).delta).all()
        assert all(not one.failure for one in hospital.evaluate(weights, [Role.VALIDATION, Role.TEST]))


def test_a_hospitals_own_findings_become_a_shard_where_each_is_named(
    joined: Experiment, servers_part: Path, tmp_path: Path
) -> None:
    terms = terms_of(joined, servers_part, tmp_path / "gateway")
    training = {**terms.training, "task": "multilabel", "objective": "binary_cross_entropy"}
    terms = terms.model_copy(update={"classes": FINDINGS, "training": training})
    labels = findings(40)
    columns = {f"label_{name}": labels[:, place].tolist() for place, name in reversed([*enumerate(FINDINGS)])}
    shard = own_shard(
        parquet_of(tmp_path / "own.parquet", **columns), terms, tmp_path / "own", progress=lambda *_: None
    )
    for role in (Role.TRAIN, Role.VALIDATION, Role.TEST):
        assert shard.labels(role).tolist() == labels[shard.rows(role)].tolist()
    said = "\n".join(Membership("hospital-03", terms, shard, tmp_path).what_leaves())
    assert "rows of 3 numbers: which findings each of these scans truly has" in said
    del columns["label_bar"]
    with pytest.raises(DataError, match="do not say which scans have bar"):
        own_shard(parquet_of(tmp_path / "less.parquet", **columns), terms, tmp_path / "less", progress=lambda *_: None)
    other = terms.model_copy(update={"training": {**training, "task": "multiclass", "objective": "cross_entropy"}})
    with pytest.raises(DataError, match="task multiclass takes one class a scan"):
        own_shard(shard.path, other, tmp_path / "other", progress=lambda *_: None)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([[0, 2], [0, 1], [1, 0]]), "a label is 0 or 1 of each of 2 findings"),
        (np.array([[0, -1], [0, 1], [1, 0]]), "a label is 0 or 1 of each of 2 findings"),
        (np.array([0, 1, 1]), r"have shapes \(m, 2\) and \(m, 2\), got \(3, 2\) and \(3,\)"),
        (np.zeros((3, 3), np.int64), r"got \(3, 2\) and \(3, 3\)"),
        (np.zeros((3, 2, 1), np.int64), r"got \(3, 2\) and \(3, 2, 1\)"),
    ],
)
def test_findings_from_outside_are_read_or_refused(labels: np.ndarray, said: str) -> None:
    probabilities = np.full((3, 2), 0.25, np.float32)
    right = Predictions("a", "test", probabilities, np.array([[0, 1], [0, 0], [1, 1]]), 0.5)
    form = {"hospital_id": "a", "roles": (Role.TEST,), "num_classes": 2, "task": "multilabel"}
    (read,) = decode_predictions(encode_predictions([right]), **form)
    assert read.labels.tolist() == right.labels.tolist()
    failed = Predictions.failed("a", ["test"], "it broke")
    assert decode_predictions(encode_predictions(failed), **form)[0].failure == "it broke"
    nobody = Predictions("a", "test", probabilities[:0], labels[:0], float("nan")) if labels.shape == (3, 2) else None
    if nobody is not None:
        assert not len(decode_predictions(encode_predictions([nobody]), **form)[0].labels)
    wrong = Predictions("a", "test", probabilities, labels, 0.5)
    with pytest.raises(Refusal, match=said):
        decode_predictions(encode_predictions([wrong]), **form)
    with pytest.raises(Refusal, match="have shapes"):
        decode_predictions(encode_predictions([right]), **{**form, "task": "multiclass"})


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_leaves_the_house_is_said_field_by_field(
    joined: Experiment, dealt: Path, servers_part: Path, tmp_path: Path, transport: str
) -> None:
    terms = terms_of(joined.replace(transport=transport), servers_part, tmp_path / "gateway")
    shard = own_shard(dealt / "hospital-03.parquet", terms, tmp_path, progress=lambda *_: None)
    mine = Membership("hospital-03", terms, shard, tmp_path)
    said = "\n".join(mine.what_leaves())
    hospital = mine.admit(None)
    weights = Trainer(terms.local_training(Compute("cpu"))).initial_weights
    update = hospital.train(weights, 1)
    for word in ("delta", "num_examples", "train_loss", "seconds", "probabilities", "labels", "loss", terms.run):
        assert word in said
    assert f"{len(update.delta):,} numbers ({mine.transport.words})" in said
    assert f"at most {update_bytes(len(update.delta), mine.transport):,} bytes" in said
    assert len(encode_update(update, mine.transport)) <= update_bytes(len(update.delta), mine.transport)
    assert f"{update.num_examples} for training" in said


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"outside": "hospital-07"}, "outside names hospitals, got 'hospital-07'"),
        (
            {"outside": "hospital-03,hospital-04", "byzantine": 3, "rule": "mean"},
            "Byzantine hospitals are simulated and must be inside",
        ),
    ],
)
def test_an_experiment_says_who_can_be_outside(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ExperimentError, match=complaint):
        Experiment.from_settings({"hospitals": 5, "byzantine": 0, "rule": "mean", **settings})


def test_byzantine_hospitals_are_inside(joined: Experiment) -> None:
    lied = [joined.replace(byzantine=2, f=0, seed=seed).adversary().hospital_ids for seed in range(20)]
    assert not {name for names in lied for name in names} & set(OUTSIDE)


def test_terms_bring_no_code_into_a_hospital(joined: Experiment, servers_part: Path, tmp_path: Path) -> None:
    terms = terms_of(joined, servers_part, tmp_path / "gateway")
    bad = terms.model_copy(update={"training": {**terms.training, "model": "somebody.py:Net"}})
    with pytest.raises(ExperimentError, match="code of somebody's own"):
        bad.experiment()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--outside hospital-08", "outside: hospital-08; --gateway HOST:PORT and --roster FILE let them in"),
        ("--gateway 127.0.0.1:8443 --roster none", "--outside NAME,NAME says which they are"),
        ("--outside hospital-08 --gateway 8443 --roster none", "--gateway takes HOST:PORT, got '8443'"),
        ("--outside hospital-08 --gateway 0.0.0.0:8443 --roster none", "without --tls-cert only this machine may come"),
        ("--outside hospital-08 --gateway 127.0.0.1:8443 --roster none", "none is no roster"),
    ],
)
def test_a_gateway_that_cannot_be_is_one_line_before_anything_is_written(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(fedplatform, ["run", "lesions", *words.split()])
    assert result.exit_code == 1
    assert said in result.output
    assert result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())
