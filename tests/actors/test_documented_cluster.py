"""Every command of the pages on clusters, given as written on machines with addresses of their own, under TLS.

Pages: cluster.md, joining.md, faults.md, tuning.md, and "On a cluster" of serving.md.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from doc_pages import ROOT
from documented_machines import Machine, Machines, until
from PIL import Image

from benchmarks.network import missing_rights
from fedplatform.data.lesions import Lesions

CLUSTER, JOINING, FAULTS, TUNING, SERVING = "cluster.md", "joining.md", "faults.md", "tuning.md", "serving.md"
HOSPITALS = ("st-mary", "charite")
SMALL = ("--object-store-memory=200000000",)  # 'ray start' would take a third of the memory for each machine


def write_scans(folder: Path, *, seed: int) -> None:
    """A folder of pictures with one subfolder a class, as a hospital has it."""
    source = Lesions(hospitals=1, patients_per_hospital=80, slices_per_patient=1, seed=seed)
    labels = source.index()["label"].to_pylist()
    scans = (scan for batch in source.images(size=128, channels=1) for scan in batch)
    for number, (scan, label) in enumerate(zip(scans, labels, strict=True)):
        place = folder / source.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scan[0]).save(place / f"{number:03d}.png")


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """Three nodes of one cluster and a fourth machine outside, each with its certificate and its shard."""
    if missing := missing_rights():
        pytest.skip(missing)
    machines = None
    folder = Path(tempfile.mkdtemp(prefix="d"))
    try:
        machines = Machines(folder)
        give_access(machines)
        for number, name in enumerate(HOSPITALS, 1):
            prepare_shard(machines.all[number], name)
        prepare_server(machines.all[0])
        start_nodes(machines)
        yield machines
    finally:
        if machines:
            machines.remove()


def give_access(machines: Machines) -> None:
    """The authority is on the head; each machine gets a folder ``tls/`` with a certificate for its address."""
    head, *others = machines.all
    for machine in (*others, head):
        addresses = ("--address", "127.0.0.1", "--address", machine.address)
        head.give(CLUSTER, "fedplatform certificate authority/ --to tls/", *addresses, FEDPLATFORM_TLS="")
        if machine is not head:
            shutil.move(head.folder / "tls", machine.folder / "tls")


def prepare_shard(machine: Machine, name: str) -> None:
    """A hospital makes its shard where its scans are."""
    write_scans(machine.folder / "my_scans", seed=machine.number)
    line = "fedplatform data partition lesions prepared --data my_scans/ --hospitals 1 --byzantine 0 --root-size 0"
    machine.give(CLUSTER, line, "--size", "32")
    (machine.disk / "fedplatform").mkdir()
    shutil.move(machine.folder / "prepared/hospital-00.parquet", machine.disk / f"fedplatform/{name}.parquet")


def prepare_server(head: Machine) -> None:
    """The server has clean scans of its own, and the federation file."""
    write_scans(head.folder / "my_scans", seed=9)
    line = "fedplatform data partition lesions prepared --data my_scans/ --hospitals 1 --byzantine 0"
    head.give(CLUSTER, line, "--root-size", "20", "--size", "32")
    for place in (head.folder / "server", head.disk / "fedplatform/server"):
        place.mkdir(parents=True)
        for file in ("manifest.json", "root.parquet"):
            shutil.copy(head.folder / "prepared" / file, place)
    shutil.copy(ROOT / "deploy/federation.yaml", head.folder)


def start_nodes(machines: Machines) -> None:
    """The head, then the nodes of the hospitals, each with a copy of the head's token."""
    head, *others = machines.all
    node = head.begin(CLUSTER, "fedplatform node --head", "--", *SMALL, log="node.txt")
    head.until_said("node.txt", "fedplatform ray status", node)
    for machine, name in zip(others, HOSPITALS, strict=False):
        start_node(machine, head, name)


def start_node(machine: Machine, head: Machine, name: str) -> None:
    """The node of a hospital, with a copy of the head's token."""
    shutil.copytree(head.folder / "home/.ray", machine.folder / "home/.ray", dirs_exist_ok=True)
    (machine.folder / "node.txt").unlink(missing_ok=True)
    node = machine.begin(CLUSTER, "fedplatform node --address HEAD:6379 --hospital", name, "--", *SMALL, log="node.txt")
    machine.until_said("node.txt", "Ray runtime started", node)


def newest_round(log: Path) -> int:
    """The newest round of which a run's log speaks."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return max((int(line.get("round") or 0) for line in lines), default=0)


def test_the_doctor_finds_nothing_and_rays_own_commands_answer(machines: Machines) -> None:
    head = machines.all[0]
    head.give(CLUSTER, "fedplatform doctor federation.yaml --address HEAD:6379 --shards server")
    assert "Active" in head.give(CLUSTER, "fedplatform ray status")
    head.give(CLUSTER, "fedplatform ray list actors")


def test_a_job_is_handed_in_cancelled_gone_on_with_and_followed(machines: Machines) -> None:
    head = machines.all[0]
    log = head.folder / "home/runs/first/run.log"
    line = "fedplatform submit federation.yaml --shards /srv/fedplatform/server --name first"
    handed_in = head.begin(CLUSTER, line, "--rounds", "2000", log="submit.txt")
    until(lambda: newest_round(log) >= 2 or handed_in.poll() is not None, "the job's second round")
    assert "running" in head.give(CLUSTER, "fedplatform jobs")
    head.give(CLUSTER, "fedplatform jobs cancel first")
    assert handed_in.wait(120) != 0
    assert "WebSocket" not in head.said("submit.txt"), "of Ray's client nobody wants to hear"
    assert "running" not in head.give(CLUSTER, "fedplatform jobs")
    before = newest_round(log)
    again = head.begin(CLUSTER, "fedplatform submit --resume first", "--rounds", str(before + 20), log="again.txt")
    until(lambda: newest_round(log) > before or again.poll() is not None, "a round of the second attempt")
    assert "report" in head.give(CLUSTER, "fedplatform jobs follow first")
    assert again.wait(120) == 0, head.said("again.txt")
    assert newest_round(log) == before + 20


def test_a_run_waits_for_a_node_or_goes_on_without_it(machines: Machines) -> None:
    head, _, charite = machines.all[:3]
    charite.stop()
    run = "fedplatform run federation.yaml"
    where = ("--address", head.cluster, "--shards", "server")
    refused = head.give(CLUSTER, run, *where, "--name", "away", status=1)
    assert "charite" in refused
    alone = head.give(CLUSTER, run, *where, "--name", "alone", "--quorum", "1", "--without", "charite")
    assert "runs/alone/report.html" in alone
    waiting = head.begin(CLUSTER, run, *where, "--name", "waited", "--wait", "10m", log="waited.txt")
    head.until_said("waited.txt", "waiting for the node of charite", waiting)
    start_node(charite, head, "charite")
    assert waiting.wait(600) == 0, head.said("waited.txt")


def test_a_stopped_run_prints_the_command_that_goes_on(machines: Machines) -> None:
    head = machines.all[0]
    run = head.begin(
        CLUSTER, "fedplatform run federation.yaml", "--address", head.cluster, "--shards", "server",
        *("--name", "stopped", "--rounds", "2000", "--quorum", "1"), log="stopped.txt",
    )  # fmt: skip
    log = head.folder / "runs/stopped/run.log"
    until(lambda: newest_round(log) >= 2 or run.poll() is not None, "the second round")
    run.send_signal(signal.SIGTERM)
    assert run.wait(120) == 128 + signal.SIGTERM, head.said("stopped.txt")
    hint = head.said("stopped.txt").splitlines()[-1].rpartition("go on with: ")[2]
    assert hint.startswith("fedplatform run --resume stopped")
    before = newest_round(log)
    head.do(f"{hint} --rounds {before + 2}")
    assert newest_round(log) == before + 2


def test_a_hospital_withdraws_and_the_run_goes_on_without_it(machines: Machines) -> None:
    head = machines.all[0]
    head.give(FAULTS, "fedplatform withdraw", "runs/stopped", "charite")
    more = str(newest_round(head.folder / "runs/stopped/run.log") + 2)
    said = head.give(FAULTS, "fedplatform run --resume", "stopped", "--address", head.cluster, "--rounds", more)
    assert "charite" in said
    for command in ("fedplatform cross-site runs/stopped", f"fedplatform run --resume stopped --rounds {more}0"):
        assert "keep their scans on their own nodes" in head.do(command, status=1), "and no traceback"


def test_what_happens_is_seen(machines: Machines) -> None:
    head = machines.all[0]
    assert "alone" in head.give(CLUSTER, "fedplatform runs list")
    assert json.loads(head.give(CLUSTER, "fedplatform runs list", "--json"))
    head.give(CLUSTER, "fedplatform runs rm", "alone", "--yes")
    assert "alone" not in head.give(CLUSTER, "fedplatform runs list")
    told = head.give(
        CLUSTER, "fedplatform --log-level info --log-format words run", "federation.yaml", "--name", "told",
        "--address", head.cluster, "--shards", "server",
    )  # fmt: skip
    assert " info " in told


def test_a_hospital_outside_joins_is_revoked_and_added_again(machines: Machines) -> None:
    head, outside = machines.all[0], machines.all[3]
    key = outside.give(JOINING, "fedplatform keygen st-mary.key").splitlines()[-1]
    assert key in outside.give(JOINING, "fedplatform keygen st-mary.key", "--show")
    settings = yaml.safe_load((head.folder / "federation.yaml").read_text())
    settings |= {"hospitals": ["st-mary", "charite"], "outside": ["st-mary"], "rounds": 2000, "quorum": 1}
    gateway = head.folder / "gateway"
    gateway.mkdir()
    settings |= {"data": str(head.folder / "my_scans"), "partition": "iid"}
    (gateway / "federation.yaml").write_text(yaml.safe_dump(settings))
    (gateway / "roster.yaml").write_text(f"st-mary: {key}\n")
    for name, file in (("tls.crt", "cert.pem"), ("tls.key", "key.pem")):
        shutil.copy(head.folder / "tls" / name, gateway / file)
    shutil.copytree(head.folder / "tls", gateway / "tls")
    run = head.begin(
        JOINING,
        "fedplatform run federation.yaml --gateway 0.0.0.0:8443 --roster roster.yaml "
        "--tls-cert cert.pem --tls-key key.pem",
        *("--name", "joined", "--address", head.cluster), log="joined.txt", within=gateway,
    )  # fmt: skip
    write_scans(outside.folder / "scans", seed=5)
    join = outside.begin(
        JOINING, "fedplatform join https://federation.example:8443 --hospital st-mary --data scans/ --key st-mary.key",
        *("--ca", "tls/ca.crt", "--yes"), log="join.txt",
    )  # fmt: skip
    outside.until_said("join.txt", "round 2 of", join)
    assert "st-mary" in head.give(JOINING, "fedplatform gateway status runs/NAME", within=gateway)
    head.give(JOINING, "fedplatform gateway revoke runs/NAME st-mary", within=gateway)
    assert join.wait(300) == 1, outside.said("join.txt")
    key = outside.give(JOINING, "fedplatform keygen", "new.key").splitlines()[-1]
    head.give(JOINING, "fedplatform gateway add runs/NAME st-mary", key, within=gateway)
    run.send_signal(signal.SIGTERM)
    assert run.wait(120) == 128 + signal.SIGTERM
    hint = head.said("joined.txt").splitlines()[-1].rpartition("go on with: ")[2]
    assert "--gateway 0.0.0.0:8443" in hint


def test_a_study_runs_on_the_cluster_from_a_shared_folder(machines: Machines) -> None:
    head = machines.all[0]
    base = {
        "data": "fedplatform.data.lesions:Lesions(hospitals=5, patients_per_hospital=20)",
        **{"size": 16, "hospitals": 5, "byzantine": 1, "partition": "iid", "rounds": 2, "model": "small_cnn(width=2)"},
        "root_size": 20,
    }
    (machines.shared / "base.yaml").write_text(yaml.safe_dump(base))
    head.give(
        TUNING, "fedplatform tune poisoning --rule trimmed_mean", "--base", "base.yaml", "--address", head.cluster,
        "--trials", "1", within=machines.shared, FEDPLATFORM_TLS=str(head.folder / "tls"),
    )  # fmt: skip


def test_a_defence_is_served_on_the_cluster(machines: Machines, published: Path) -> None:
    head = machines.all[0]
    shutil.copytree(published, machines.shared / "runs/scan")
    where = {"within": machines.shared, "FEDPLATFORM_TLS": str(head.folder / "tls")}
    head.give(SERVING, "fedplatform keys add hospital-00 --keys keys.json", **where)
    head.give(SERVING, "fedplatform serve runs/scan --keys keys.json --build serve.yaml", **where)
    head.give(SERVING, "fedplatform ray serve deploy serve.yaml", **where)
    until(lambda: "RUNNING" in head.do("fedplatform ray serve status", **where), "the endpoint")
    head.give(SERVING, "fedplatform ray status", **where)
