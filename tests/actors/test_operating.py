"""A federation that goes on while its parts come and go: a node, a hospital outside, the server, a certificate."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
import yaml
from cluster_nodes import Nodes, free_port
from delays import delays, told

from actors.cluster.certificates import make_authority, make_certificate
from fedplatform.data.lesions import Lesions
from fedplatform.data.partition import Iid
from fedplatform.data.shards import partition

ROUNDS = 30
INSIDE = ("st-mary", "charite", "north")
OUTSIDE = "south"
PATIENCE_S = 600


@dataclass
class Operation:
    """The folder in which an operator and a hospital outside give their commands, and what these have said."""

    nodes: Nodes
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def begin(self, command: str, log: str) -> subprocess.Popen[bytes]:
        with (self.nodes.folder / log).open("ab") as output:
            process = subprocess.Popen(
                shlex.split(command), cwd=self.nodes.folder, env=self.nodes.environment, stdout=output, stderr=output
            )
        self.started.append(process)
        return process

    def said(self, log: str) -> str:
        return (self.nodes.folder / log).read_text(errors="replace")

    def logged(self, *words: str) -> bool:
        """Whether a line of the run's log has all these words."""
        file = self.nodes.folder / "runs/long/run.log"
        lines = file.read_text().splitlines() if file.exists() else []
        return any(all(word in line for word in words) for line in lines)

    def newest_round(self) -> int:
        file = self.nodes.folder / "runs/long/run.log"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return max((int(line["round"]) for line in lines if "balanced accuracy" in line["message"]), default=0)

    def until(self, happened: Callable[[], object], what: str, alive: subprocess.Popen[bytes] | None = None) -> None:
        end = time.monotonic() + PATIENCE_S
        while not happened():
            assert alive is None or alive.poll() is None, self.said("run.txt")[-3000:]
            assert time.monotonic() < end, f"{what}\n{self.said('run.txt')[-3000:]}"
            time.sleep(0.3)


@pytest.fixture
def operation() -> Iterator[Operation]:
    folder = Path(tempfile.mkdtemp(prefix="op"))
    nodes = Nodes(folder)
    operation = Operation(nodes)
    try:
        nodes.start_head("fedplatform node --head", "--num-cpus=0")
        for name in INSIDE:
            nodes.start(f"fedplatform node --address {nodes.address} --hospital {name}", "--num-cpus=1")
        yield operation
    finally:
        for process in operation.started:
            process.kill()
            process.wait()
        nodes.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_thirty_rounds_while_parts_come_and_go_lose_nothing(operation: Operation) -> None:
    nodes, folder = operation.nodes, operation.nodes.folder
    partition(
        Lesions(hospitals=1, patients_per_hospital=40),
        **{"name": "own", "how": Iid(), "folder": folder / "dealt", "num_hospitals": 1},
        **{"size": 32, "channels": 1, "root_size": 0, "seed": 5},
    )
    settings = {
        "data": "fedplatform.data.lesions:Lesions(hospitals=3, patients_per_hospital=40)",
        **{"hospitals": [*INSIDE, OUTSIDE], "outside": [OUTSIDE], "byzantine": 0, "rule": "mean", "rounds": 5000},
        **{"size": 32, "model": "small_cnn(width=8)", "root_size": 0, "quorum": 2, "local_epochs": 2},
    }
    (folder / "federation.yaml").write_text(yaml.safe_dump(settings))
    roster = nodes.run(f"fedplatform keygen {OUTSIDE}.key")
    (folder / "roster.yaml").write_text(f"{OUTSIDE}: {roster.stdout}")
    port = free_port()
    make_authority(folder / "authority")
    gateway_tls = folder / "gateway"
    make_certificate(folder / "authority", gateway_tls, addresses=["127.0.0.1"])
    join = (
        f"fedplatform join https://127.0.0.1:{port} --hospital {OUTSIDE} --data dealt/hospital-00.parquet "
        f"--key {OUTSIDE}.key --ca authority/ca.crt --yes"
    )
    run = operation.begin(
        f"fedplatform run federation.yaml --name long --address {nodes.address} --gateway 127.0.0.1:{port} "
        "--roster roster.yaml --tls-cert gateway/tls.crt --tls-key gateway/tls.key",
        "run.txt",
    )

    # A hospital outside comes, and goes by SIGTERM.
    south = operation.begin(join, "south.txt")
    operation.until(lambda: operation.logged("update taken", OUTSIDE), "an update from outside", run)
    status = nodes.run("fedplatform gateway status runs/long")
    assert OUTSIDE in status.stdout
    south.terminate()
    assert south.wait(120) == 128 + signal.SIGTERM

    # A node goes in the middle of a round and comes back; the rounds in between go on without its hospital.
    charite = nodes.started[2]
    charite.terminate()
    charite.wait(120)
    operation.until(lambda: operation.logged('"crashed', "charite") or operation.logged("late", "charite"), "gone", run)
    nodes.start(f"fedplatform node --address {nodes.address} --hospital charite", "--num-cpus=1")
    back_after = operation.newest_round()
    operation.until(lambda: operation.newest_round() > back_after + 1, "more rounds", run)

    # The server is stopped by SIGTERM, its certificate ends, and the printed command is refused until that is renewed.
    run.send_signal(signal.SIGTERM)
    assert run.wait(300) == 128 + signal.SIGTERM
    hint = operation.said("run.txt").splitlines()[-1].rpartition("go on with: ")[2]
    assert hint.startswith("fedplatform run --resume long --address")
    make_certificate(folder / "authority", gateway_tls, addresses=["127.0.0.1"], life=timedelta(seconds=1))
    time.sleep(2)
    ended = nodes.run(hint)
    assert ended.returncode == 1
    assert "has ended" in ended.stderr
    make_certificate(folder / "authority", gateway_tls, addresses=["127.0.0.1"])
    rounds_asked = max(ROUNDS, operation.newest_round() + 15)
    south = operation.begin(join, "south.txt")  # it tries until the server is there again
    again = operation.begin(f"{hint} --rounds {rounds_asked}", "run.txt")
    operation.until(lambda: again.poll() is not None, "the end")
    assert again.returncode == 0, operation.said("run.txt")[-3000:]
    assert south.wait(300) == 0, operation.said("south.txt")[-3000:]

    print(told(delays(folder / "runs/long")))  # the table of docs/faults.md
    rounds = pd.read_parquet(folder / "runs/long/rounds.parquet")
    hospitals = pd.read_parquet(folder / "runs/long/hospitals.parquet")
    every = list(range(1, rounds_asked + 1))
    assert list(rounds["round_number"]) == every, "every round once"
    counted = hospitals[hospitals["weight"] > 0]
    assert sorted(set(counted["round_number"])) == every, "no round was without effect"
    for name in (*INSIDE, OUTSIDE):
        own = counted[counted["hospital_id"] == name]["round_number"]
        assert own.max() == rounds_asked, f"{name} is there at the end"
    assert list(counted[counted["hospital_id"] == "st-mary"]["round_number"]) == every
    missed = hospitals[(hospitals["hospital_id"] == "charite") & (hospitals["weight"] == 0)]
    assert missed["round_number"].min() <= back_after + 1
    assert missed["reason"].str.len().min() > 0, "each absence has its reason"
