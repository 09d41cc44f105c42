"""Two hospitals join eight over HTTPS from networks of their own; a cable is pulled and the server killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from authority import make_certificate
from endpoint_process import free_port
from outside_helpers import reasons
from PIL import Image
from safetensors.numpy import load_file

from actors.http.start import prepare
from benchmarks.faults import Machines
from benchmarks.network import Cables, missing_rights
from fedplatform.data.lesions import Lesions
from fedplatform.data.partition import Iid
from fedplatform.data.shards import Manifest, partition
from fedplatform.experiments.engine import ServerRole, cohort_plan, local_training
from fedplatform.experiments.experiment import Experiment
from fedplatform.federated.cohort import InProcessCohort
from fedplatform.learning.training import Trainer

INSIDE = tuple(f"hospital-{number:02d}" for number in range(8))
OUTSIDE = ("hospital-08", "hospital-09")
ROUNDS = 3
PATIENCE_S = 900.0


@dataclass
class Federation:
    """A run in ``folder`` and the hospitals that join it: on machines of their own, or all on this one."""

    folder: Path
    cables: Cables | None
    cluster: str
    address: str
    port: int
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def run_folder(self) -> Path:
        return self.folder / "runs" / "joined"

    def start(self, machine: int | None, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Run fedplatform on a machine, or here; what it says goes to a file."""
        prefix = self.cables.on(machine) if self.cables and machine is not None else ()
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        with (self.folder / name).open("ab") as output:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "fedplatform", *words],
                cwd=self.folder,
                env=environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def serve(self, *words: str) -> subprocess.Popen[bytes]:
        """Start the server, or start it again."""
        tls = ["--tls-cert", "server.pem", "--tls-key", "server.key"]
        door = ["--gateway", f"{self.address}:{self.port}", "--roster", "roster.yaml", *tls]
        return self.start(None, "server.txt", "run", *words, *door, "--hosts", "1", "--address", self.cluster)

    def join(self, number: int, data: str) -> subprocess.Popen[bytes]:
        """Have a hospital join."""
        name = OUTSIDE[number]
        url = f"https://{self.address}:{self.port}"
        words = ["--hospital", name, "--data", data, "--key", f"{name}.key", "--ca", "authority.pem", "--yes"]
        return self.start(number, f"{name}.txt", "join", url, *words)

    def broken(self, number: int) -> int:
        """How often a hospital has said that the line is broken."""
        return self.said(f"{OUTSIDE[number]}.txt").count("no connection")

    def said(self, name: str) -> str:
        file = self.folder / name
        return file.read_text() if file.exists() else ""

    def wait(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            texts = {name: self.said(name)[-2000:] for name in ("server.txt", *(f"{name}.txt" for name in OUTSIDE))}
            assert time.monotonic() < deadline, f"waited for {what}: {texts}"
            assert all(process.poll() in (None, 0, -signal.SIGKILL) for process in self.started), texts
            time.sleep(0.2)

    def end(self) -> None:
        """End every process that is still there."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A finished federation in which a cable was out for a while, and the server's driver killed and started again."""
    folder = tmp_path_factory.mktemp("j")
    cables = None if missing_rights() else Cables(nodes=1)
    machines = None
    federation = None
    try:
        address = cables.plug_in_here() if cables else "127.0.0.1"
        prepare()
        machines = Machines(nodes=1)
        federation = Federation(folder, cables, machines.address, address, free_port())
        make_certificate(folder, address)
        write_scans(folder)
        roster = []
        for name in OUTSIDE:
            made = subprocess.run(
                [sys.executable, "-m", "fedplatform", "keygen", f"{name}.key"],
                cwd=folder,
                capture_output=True,
                text=True,
                check=True,
            )
            roster.append(f"{name}: {made.stdout}")
        (folder / "roster.yaml").write_text("".join(roster))
        settings = {
            "data": "fedplatform.data.lesions:Lesions(hospitals=8, patients_per_hospital=30)",
            **{"outside": list(OUTSIDE), "hospitals": 10, "byzantine": 0, "rule": "mean", "rounds": ROUNDS},
            **{"size": 32, "model": "small_cnn(width=4)", "root_size": 20, "deadline_s": 600.0, "quorum": 10},
        }
        (folder / "federation.yaml").write_text(yaml.safe_dump(settings))
        first = federation.serve("federation.yaml", "--name", "joined")
        hospitals = [federation.join(0, "shard.parquet"), federation.join(1, "scans")]
        federation.wait(lambda: "round 2 of 3: training" in federation.said("hospital-08.txt"), "round 2")
        before = federation.broken(1)
        if cables:
            cables.cut(0)
        first.kill()
        first.wait()
        federation.wait(lambda: federation.broken(1) > before, "a broken line")
        if cables:
            cables.heal(0)
        second = federation.serve("--resume", "joined")
        federation.wait(lambda: all(p.poll() == 0 for p in (second, *hospitals)), "the end")
        yield federation
    finally:
        if federation:
            federation.end()
        if machines:
            machines.stop()
        if cables:
            cables.remove()


def write_scans(folder: Path) -> None:
    """A finished shard for one hospital, a folder of pictures for the other."""
    source = Lesions(hospitals=1, patients_per_hospital=40)
    dealt = {"num_hospitals": 1, "size": 32, "channels": 1, "root_size": 0, "seed": 5}
    partition(source, name="own", how=Iid(), folder=folder / "dealt", **dealt)
    (folder / "dealt" / "hospital-00.parquet").rename(folder / "shard.parquet")
    random = np.random.default_rng(1)
    for number in range(80):
        label = ("healthy", "lesion")[number % 2]
        place = folder / "scans" / label / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shade = random.normal(100 + 60 * (number % 2), 20, (32, 32)).clip(0, 255)
        Image.fromarray(shade.astype(np.uint8)).save(place)


def test_both_take_part_in_every_round_as_if_they_were_inside(joined: Federation) -> None:
    table = pd.read_parquet(joined.run_folder / "hospitals.parquet")
    assert set(table["hospital_id"]) == {*INSIDE, *OUTSIDE}
    assert set(table["state"]) == {"reported"}
    assert len(table) == ROUNDS * 10


def test_the_model_is_the_one_that_all_ten_in_one_process_would_have_trained(
    joined: Federation, tmp_path: Path
) -> None:
    experiment = Experiment.from_settings(yaml.safe_load((joined.run_folder / "experiment.yaml").read_text()))
    shards = joined.run_folder / "shards"
    plan = cohort_plan(experiment, shards, state_folder=tmp_path)
    own = next((joined.folder / "joined" / OUTSIDE[1]).rglob("hospital-00.parquet"))
    plan.shard_files[OUTSIDE[0]] = joined.folder / "shard.parquet"
    plan.shard_files[OUTSIDE[1]] = own
    role = ServerRole(experiment, shards, InProcessCohort(plan))
    assert len(list(role.reports())) == ROUNDS
    layout = Trainer(local_training(experiment, Manifest.load(shards))).layout
    alone = {name: value.tobytes() for name, value in layout.unflatten(role.outcome().weights).items()}
    for file in (joined.run_folder, *joined.folder.glob("joined/*/*")):
        if (file / "global.safetensors").exists():
            found = {name: value.tobytes() for name, value in load_file(file / "global.safetensors").items()}
            assert found == alone, file


def test_no_scan_and_no_own_part_of_the_model_came_to_the_server(joined: Federation) -> None:
    assert not [file for file in (joined.run_folder / "hospitals").rglob("*") if file.stem in OUTSIDE]
    assert not [file for file in (joined.run_folder / "shards").iterdir() if file.stem in OUTSIDE]
    assert list(joined.folder.glob(f"joined/{OUTSIDE[0]}/*/personal.safetensors"))


def test_what_left_the_house_was_shown_before_and_while_it_did(joined: Federation) -> None:
    said = joined.said(f"{OUTSIDE[0]}.txt")
    assert said.index("What leaves it in every round") < said.index("OUT:")
    for number in range(1, ROUNDS + 1):
        for kind in ("update", "predictions"):
            assert f"round {number} of {ROUNDS}: OUT: signed {kind}" in said
    assert "finished; the model:" in said


def test_nothing_was_refused_but_what_was_under_way_when_the_server_went_back(joined: Federation) -> None:
    assert set(reasons(joined.run_folder / "gateway" / "refusals.jsonl")) <= {"no session", "not asked for", "late"}


def test_the_hospitals_were_on_networks_of_their_own(joined: Federation) -> None:
    if joined.cables is None:
        pytest.skip(missing_rights())
    assert joined.broken(0) > 0
