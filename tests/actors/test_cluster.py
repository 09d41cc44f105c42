"""README's section on a cluster, line by line on three real nodes; who gets in, and who is told at once."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from cluster_nodes import Nodes, free_port

from actors.cluster.kubernetes import LIVENESS
from actors.http.start import MIDDLEWARES, VARIABLE
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment, load_settings
from fedplatform.experiments.run import partition_data, run

ROOT = Path(__file__).parents[2]
SMALL = {
    "data": "fedplatform.data.lesions:Lesions(hospitals=2, patients_per_hospital=40)",
    "model": "small_cnn(width=4)",
    "rounds": 2,
    "root_size": 20,
}


def section() -> list[str]:
    """The lines of README's block on a cluster, comments off."""
    (block,) = (block for block in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
                if "fedplatform node" in block)  # fmt: skip
    return [line.partition("#")[0].strip() for line in block.splitlines() if line.strip()]


@dataclass(frozen=True)
class Federation:
    """Three nodes that README's lines started, and the federation of deploy/federation.yaml, small, on them."""

    nodes: Nodes
    experiment: Experiment
    said: dict[str, str]  # what each line printed


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    folder = Path(tempfile.mkdtemp(prefix="fed"))
    nodes = Nodes(folder)
    try:
        settings = {**load_settings(str(ROOT / "deploy/federation.yaml")), **SMALL}
        text = yaml.safe_dump(settings).replace("/srv/fedplatform", str(folder / "srv"))
        (folder / "federation.yaml").write_text(text)
        experiment = Experiment.from_settings(yaml.safe_load(text))
        # What a hospital and the server have before anything starts: each its own file, and nobody another's.
        partition_data(experiment, folder / "dealt")
        (folder / "srv").mkdir()
        (folder / "server").mkdir()
        for place, number in zip(experiment.places, range(2), strict=True):
            shutil.move(folder / f"dealt/hospital-{number:02d}.parquet", place.shard)
        for name in ("manifest.json", "root.parquet"):
            shutil.copy(folder / "dealt" / name, folder / "server")
        said = {}
        for line in section():
            command = line.replace("HEAD:6379", nodes.address).replace("/srv/fedplatform", str(folder))
            if command == "fedplatform node --head":
                nodes.start_head(command, "--num-cpus=0")
            elif command.startswith("fedplatform node "):
                nodes.start(command, "--num-cpus=1")
            else:
                done = nodes.run(command)
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
                said[line] = done.stdout
        yield Federation(nodes, experiment, said)
    finally:
        nodes.stop()
        shutil.rmtree(folder, ignore_errors=True)


def line_with(federation: Federation, word: str) -> str:
    (said,) = (said for line, said in federation.said.items() if line.split()[1] == word)
    return said


def test_the_readmes_lines_train_on_three_nodes_as_one_process_does(federation: Federation, tmp_path: Path) -> None:
    folder = federation.nodes.folder
    assert "report:" in line_with(federation, "run")
    # Simulated here, from the same file: the scans are dealt out anew, and nobody has a place.
    simulated, _ = run(federation.experiment, engine=InProcessEngine(), runs=tmp_path, name="simulated")
    weights = (simulated.path / "global.safetensors").read_bytes()
    (on_cluster,) = folder.glob("runs/*/global.safetensors")
    assert on_cluster.read_bytes() == weights
    assert (federation.nodes.home / "runs/first/global.safetensors").read_bytes() == weights  # as a job


def test_each_hospital_runs_on_the_node_that_bears_its_label(federation: Federation) -> None:
    script = """
import json, sys
from pathlib import Path
from actors.cluster.joining import join
join(sys.argv[1])
import psutil
from actors.cohort import RayCohort
from fedplatform.experiments.engine import cohort_plan
from fedplatform.experiments.experiment import Experiment, load_settings
experiment = Experiment.from_settings(load_settings("federation.yaml"))
plan = cohort_plan(experiment, Path("server"), state_folder=Path("state"), places=experiment.places)
cohort = RayCohort(plan, num_hosts=0, deadline_s=120, places=experiment.places)
raylets = {name: psutil.Process(cohort.process_of(name)).parent().cmdline() for name in cohort.hospital_ids}
print(json.dumps({n: next(w for w in words if "node_ip_address=" in w) for n, words in raylets.items()}))
"""
    (federation.nodes.folder / "where.py").write_text(script)
    done = federation.nodes.run(f"python -W ignore where.py {federation.nodes.address}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "st-mary": "--node_ip_address=127.0.0.3",
        "charite": "--node_ip_address=127.0.0.4",
    }


def test_whatever_serve_starts_on_the_head_has_our_bounds_in_front(federation: Federation) -> None:
    head = psutil.Process(federation.nodes.started[0].pid)
    (raylet,) = (process for process in head.children(recursive=True) if process.name() == "raylet")
    assert raylet.environ()[VARIABLE] == MIDDLEWARES


def test_a_hospital_without_a_node_is_named_at_once(federation: Federation) -> None:
    settings = yaml.safe_load((federation.nodes.folder / "federation.yaml").read_text())
    settings["hospitals"].append({"name": "st-nobody", "shard": "/srv/nobody.parquet"})
    (federation.nodes.folder / "three.yaml").write_text(yaml.safe_dump(settings))
    command = f"fedplatform run three.yaml --address {federation.nodes.address} --shards server --name three"
    done = federation.nodes.run(command)
    assert done.returncode == 1
    assert done.stderr.strip().count("\n") == 0
    assert "no node of the cluster is labelled as that of st-nobody" in done.stderr
    assert not (federation.nodes.folder / "runs/three").exists()
    examined = federation.nodes.run(f"fedplatform doctor three.yaml --address {federation.nodes.address}")
    assert examined.returncode == 1
    assert "--hospital st-nobody" in examined.stdout


def test_a_run_may_begin_without_a_hospital_whose_node_is_away(federation: Federation) -> None:
    settings = yaml.safe_load((federation.nodes.folder / "federation.yaml").read_text())
    settings["hospitals"][1]["node"] = "moved-away"
    (federation.nodes.folder / "away.yaml").write_text(yaml.safe_dump(settings))
    where = f"--address {federation.nodes.address} --shards server --name away --rounds 1"
    command = f"fedplatform run away.yaml {where}"
    for way in ("--without charite", "--wait 2s"):
        begun = federation.nodes.run(f"{command} --quorum 1 {way}")
        assert begun.returncode == 0, begun.stdout + begun.stderr
        assert "without charite: its node is not there; it joins when that comes" in begun.stderr
        assert "its node has not come yet" in begun.stdout
        shutil.rmtree(federation.nodes.folder / "runs/away")
    few = federation.nodes.run(f"{command} --quorum 2 --wait 0s")
    assert few.returncode == 1
    assert "1 are fewer than the quorum of 2" in few.stderr
    assert "no such hospital" in federation.nodes.run(f"{command} --without charit").stderr


def test_an_absent_hospital_joins_when_its_node_comes(federation: Federation) -> None:
    nodes = federation.nodes
    settings = yaml.safe_load((nodes.folder / "federation.yaml").read_text())
    settings["hospitals"][1]["node"] = "comes-later"
    (nodes.folder / "later.yaml").write_text(yaml.safe_dump(settings))
    command = f"fedplatform run later.yaml --address {nodes.address} --shards server --name later --rounds 5000"
    words = [*shlex.split(command), "--quorum", "1", "--without", "charite"]
    log = nodes.folder / "runs/later/run.log"
    with (nodes.folder / "later.txt").open("w") as output:
        process = subprocess.Popen(words, cwd=nodes.folder, env=nodes.environment, stdout=output, stderr=output)
        try:
            wait_for(log, '"late: its node has not come yet", "round": 2, "hospital": "charite"', process)
            nodes.start(f"fedplatform node --address {nodes.address} --hospital comes-later", "--num-cpus=1")
            wait_for(log, '"hospital": "charite"', process, '"trained on ')
            process.terminate()
            assert process.wait(300) == 128 + signal.SIGTERM
        finally:
            process.kill()
    last = (nodes.folder / "later.txt").read_text().splitlines()[-1]
    again = f"fedplatform run --resume later --address {nodes.address} --without charite --shards server"
    assert last.endswith(f"stopped; finished rounds are kept; go on with: {again}")


def wait_for(log: Path, words: str, process: subprocess.Popen[bytes], *more: str) -> None:
    """Until a line of a run's log has these words."""
    until = time.monotonic() + 420
    while not any(all(part in line for part in (words, *more)) for line in _lines(log)):
        assert process.poll() is None, (log.parent.parent.parent / "later.txt").read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.5)


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def test_a_shard_that_is_not_on_its_node_is_told_of_by_hospital(federation: Federation) -> None:
    folder = federation.nodes.folder
    text = (folder / "federation.yaml").read_text().replace("charite.parquet", "missing.parquet")
    (folder / "missing.yaml").write_text(text)
    where = f"--address {federation.nodes.address} --shards server"
    examined = federation.nodes.run(f"fedplatform doctor missing.yaml {where}")
    assert examined.returncode == 1
    assert "shard of charite" in examined.stdout
    done = federation.nodes.run(f"fedplatform run missing.yaml {where} --name missing")
    assert done.returncode == 1
    assert "missing.parquet" in done.stderr


@pytest.mark.parametrize("token", ["wrong", ""])
def test_without_the_right_token_nobody_gets_in(federation: Federation, token: str) -> None:
    stranger = federation.nodes.folder / f"stranger-{token}"
    (stranger / ".ray").mkdir(parents=True)
    if token:
        (stranger / ".ray/auth_token").write_text(token)
    for command in (
        f"fedplatform run federation.yaml --address {federation.nodes.address} --shards server",
        f"fedplatform node --address {federation.nodes.address} --hospital st-mary",
        "fedplatform submit federation.yaml --shards server",
    ):
        done = federation.nodes.run(command, HOME=str(stranger))
        assert done.returncode == 1
        assert "token" in done.stderr
        assert done.stderr.strip().count("\n") == 0


def test_the_dashboard_is_on_loopback_and_asks_for_the_token(federation: Federation) -> None:
    port = federation.nodes.dashboard_port
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=30)
    with refused.value as answer:  # or its connection stays open
        assert answer.code == 401
    assert federation.nodes.home.joinpath(".ray/auth_token").stat().st_mode & 0o077 == 0
    for address in {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} | {
        "127.0.0.2"
    }:
        if address != "127.0.0.1":
            with socket.socket() as elsewhere:
                assert elsewhere.connect_ex((str(address), port)) != 0


def test_the_probes_of_kubernetes_are_answered_without_a_token(federation: Federation) -> None:
    agent = next(
        word.partition("=")[2]
        for word in Path(f"/proc/{federation.nodes.started[1].pid}/cmdline").read_text().split("\0")
        if word.startswith("--dashboard-agent-listen-port")
    )
    for url in (
        f"http://127.0.0.3:{agent}{LIVENESS['path']}",
        f"http://127.0.0.1:{federation.nodes.dashboard_port}/api/gcs_healthz",
    ):
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("fedplatform ray status", "Total Usage"),
        ("fedplatform ray list actors", "Stats:"),
        ("fedplatform ray serve status", "proxies"),
        ("fedplatform jobs --json", '"run": "first"'),
        ("fedplatform doctor --json --address ADDRESS", '"check": "token"'),
        ("fedplatform runs list --json --runs ~/runs", '"name": "first"'),
    ],
)
def test_an_operator_sees_what_is_there(federation: Federation, command: str, said: str) -> None:
    home = str(federation.nodes.home)
    done = federation.nodes.run(command.replace("ADDRESS", federation.nodes.address).replace("~", home))
    assert said in done.stdout, done.stdout + done.stderr


def test_a_search_finds_the_files_that_it_was_given_by_their_relative_names(federation: Federation) -> None:
    folder = federation.nodes.folder
    settings = {
        **{"data": "lesions", "size": 16, "scans": 120, "hospitals": 3, "byzantine": 1, "rounds": 1, "root_size": 0},
        **{"model": "small_cnn(width=4)", "partition": "iid", "f": 1, "rule": "median"},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(settings))
    study = "poisoning(attacks=('sign_flip',),rules=())"
    where = f"--address {federation.nodes.address} --jobs 1 --name searched"
    done = federation.nodes.run(f'fedplatform tune "{study}" --rule median --base base.yaml --trials 1 {where}')
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout, done.stdout


def test_a_job_is_cancelled_by_the_name_of_its_run(federation: Federation) -> None:
    long = f"--shards {federation.nodes.folder}/server --rounds 5000 --name long --detach"
    done = federation.nodes.run(f"fedplatform submit federation.yaml {long}")
    assert done.returncode == 0, done.stderr
    again = federation.nodes.run(f"fedplatform submit federation.yaml {long}")
    assert "under way" in again.stderr
    assert federation.nodes.run("fedplatform jobs cancel long").returncode == 0
    followed = federation.nodes.run("fedplatform jobs follow long")
    assert followed.returncode == 1
    assert "run 'long' stopped" in followed.stderr
    for words in ("jobs cancel lnog", "submit --resume lnog"):
        unknown = federation.nodes.run(f"fedplatform {words}")
        assert unknown.returncode == 1
        assert "knows no run 'lnog'" in unknown.stderr
    assert "lnog" not in federation.nodes.run("fedplatform jobs").stdout


def test_a_finished_run_stays_finished_when_its_name_is_handed_in_again(federation: Federation) -> None:
    short = f"--shards {federation.nodes.folder}/server --rounds 1 --name short"
    done = federation.nodes.run(f"fedplatform submit federation.yaml {short}")
    assert done.returncode == 0, done.stdout + done.stderr
    again = federation.nodes.run(f"fedplatform submit federation.yaml {short}")
    assert again.returncode == 1
    assert "run 'short' is finished" in again.stderr
    assert "succeeded" in next(
        line for line in federation.nodes.run("fedplatform jobs").stdout.splitlines() if "short" in line
    )


def test_a_run_that_is_handed_in_has_a_gateway_whose_roster_travels_with_it(federation: Federation) -> None:
    key = federation.nodes.run("fedplatform keygen outside.key").stdout
    (federation.nodes.folder / "who.yaml").write_text(f"hospital-02: {key}")
    small = (
        "--hospitals 3 --byzantine 0 --rule mean --root-size 0 --partition iid --scans 240 --size 16 --rounds 2 "
        "--model small_cnn(width=4) --quorum 2 --deadline-s 20"
    )
    way_in = f"--outside hospital-02 --gateway 127.0.0.1:{free_port()} --roster who.yaml"
    done = federation.nodes.run(f"fedplatform submit lesions {small} {way_in} --name open")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gateway at http://127.0.0.1" in done.stdout
    assert "for hospital-02" in done.stdout
    log = (federation.nodes.home / "runs/open/run.log").read_text()
    assert "late: nothing came from outside" in log
    refused = federation.nodes.run(f"fedplatform submit lesions {small} --outside hospital-02 --name shut")
    assert refused.returncode == 1
    assert "--gateway HOST:PORT and --roster FILE let them in" in refused.stderr


def test_tls_is_one_setting_and_without_it_nobody_is_understood() -> None:
    nodes = Nodes(Path(tempfile.mkdtemp(prefix="tls")))
    try:
        made = nodes.run("fedplatform certificate authority --to tls --address 127.0.0.1 --address 127.0.0.2")
        assert made.returncode == 0, made.stderr
        nodes.environment["FEDPLATFORM_TLS"] = "tls/"
        nodes.start_head("fedplatform node --head", "--num-cpus=1")
        inside = nodes.run(f"fedplatform doctor --address {nodes.address}")
        assert inside.returncode == 0, inside.stdout + inside.stderr
        assert "on; the certificate is good for 364 days" in inside.stdout
        settings = "--hospitals 2 --byzantine 0 --rule mean --root-size 0 --partition iid --scans 200 --size 16"
        submitted = nodes.run(f"fedplatform submit lesions {settings} --rounds 1 --model small_cnn(width=4)")
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        outside = nodes.run(f"fedplatform run lesions --address {nodes.address}", FEDPLATFORM_TLS="")
        assert outside.returncode == 1
        assert "with TLS off" in outside.stderr
        foreign = nodes.run("fedplatform certificate foreign --to theirs --address 127.0.0.2")
        assert foreign.returncode == 0, foreign.stderr
        stranger = nodes.run(f"fedplatform run lesions --address {nodes.address}", FEDPLATFORM_TLS="theirs")
        assert stranger.returncode == 1
        assert "no Ray cluster answers" in stranger.stderr
    finally:
        nodes.stop()
        shutil.rmtree(nodes.folder, ignore_errors=True)
