"""The load test of the endpoint: ``python -m benchmarks.load RUN`` (``make load``). Loopback only, some five minutes.

It serves the run on this machine and sends, by Locust: clean scans to the bare classifier and to the full defence on
the same server, in turns; scans of which one in ten is attacked; bursts beyond what the server holds; the same while
replicas are killed; and while the audit log is rotated, keys are changed and uploads stall. Every answer is compared
with the library's. ``docs/results/load.csv`` has a row a scenario.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch

from fedplatform.core.seeding import torch_generator
from fedplatform.defence import KeyedNoise
from fedplatform.defence.threats import Victim, attack_hospital
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.serving.answer import picture
from fedplatform.serving.api_keys import Keys
from fedplatform.serving.audit_log import rotate
from fedplatform.serving.publishing import publish_run
from fedplatform.serving.secret import open_secret, secret_path
from fedplatform.serving.versions import RunVersions, bundle_of

HOSPITALS = 2
SCANS = 24  # of each hospital, and as many attacked ones
EPSILON = 8 / 255
STAGES = ("read", "examine", "examine_compute", "purify", "purify_compute", "record", "total", "client")
USERS, SECONDS = 8, 20
NAME = "fedplatform"  # of the application


@dataclass(frozen=True)
class Scenario:
    """Which defence, how many attacked scans, how many users (steps of seconds and users), what happens when."""

    name: str
    defence: str
    attacked_share: float
    steps: tuple[tuple[float, int], ...]
    events: tuple[tuple[float, str], ...] = ()  # a replica's name is killed, the others are methods of Operator


STEADY = ((SECONDS, USERS),)
SCENARIOS = (
    Scenario("clean, bare classifier", "no_defence", 0.0, STEADY),
    Scenario("clean, full defence", "full", 0.0, STEADY),
    Scenario("clean, full defence (again)", "full", 0.0, STEADY),
    Scenario("clean, bare classifier (again)", "no_defence", 0.0, STEADY),
    Scenario("10 % attacked", "full", 0.1, STEADY),
    Scenario("10 % attacked, bursts", "full", 0.1, ((5, 2), (5, 160), (5, 2), (5, 160), (5, 2))),
    Scenario(
        "10 % attacked, replicas killed",
        "full",
        0.1,
        ((80, USERS),),
        ((5, "Diagnostician"), (20, "Purifying"), (35, "Ingress"), (50, "Auditor")),
    ),
    Scenario(
        "10 % attacked, log rotated, keys changed, uploads stall",
        "full",
        0.1,
        ((60, USERS),),
        (
            *((5, "rotate_log"), (10, "truncate_log"), (15, "spoil_log"), (20, "spoil_keys"), (25, "mend_keys")),
            *((30, "add_and_revoke_key"), (35, "stall_uploads"), (50, "rotate_log")),
        ),
    ),
)


@dataclass(frozen=True)
class Operator:
    """Who runs the server while it is asked: rotates its log, changes its keys; and a client whose uploads stall."""

    log: Path
    keys_file: Path
    secret: str
    port: int

    def rotate_log(self) -> None:
        """As ``fedplatform audit rotate`` does."""
        rotate(self.log)

    def truncate_log(self) -> None:
        """As logrotate does with copytruncate."""
        shutil.copyfile(self.log, self.log.with_suffix(".copy"))
        os.truncate(self.log, 0)

    def spoil_log(self) -> None:
        """A stray byte behind the last line."""
        with self.log.open("ab") as file:
            file.write(b"x")

    def spoil_keys(self) -> None:
        """A file of keys that is half written, for five seconds."""
        shutil.copy2(self.keys_file, self.keys_file.with_suffix(".whole"))
        self.keys_file.write_text(self.keys_file.read_text()[:40])

    def mend_keys(self) -> None:
        """And whole again."""
        self.keys_file.with_suffix(".whole").replace(self.keys_file)

    def add_and_revoke_key(self) -> None:
        """Another key, given and taken back."""
        keys = Keys.load(self.keys_file)
        key_id = keys.add("another").split("_")[1]
        keys.revoke(key_id)

    def stall_uploads(self) -> None:
        """A hundred uploads of one key that send their first line and nothing else, until the server ends them."""
        head = (
            f"POST /v1/diagnose HTTP/1.1\r\nHost: x\r\nX-API-Key: {self.secret}-other\r\nContent-Length: 1000\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
        sockets = [socket.create_connection(("127.0.0.1", self.port)) for _ in range(100)]
        for one in sockets:
            one.sendall(head.encode())
            one.settimeout(60)
        for one in sockets:
            with suppress(OSError):
                one.recv(1)
            one.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/load.csv"))
    parser.add_argument("--only", default="", metavar="WORDS", help="scenarios whose name holds these words")
    chosen = parser.parse_args()
    scenarios = [scenario for scenario in SCENARIOS if chosen.only in scenario.name]
    versions = RunVersions(chosen.run)
    numbers = {}
    for defence in ("full", "no_defence"):
        known = [number for number in versions.numbers() if _defence(versions.folder(number)) == defence]
        numbers[defence] = known[-1] if known else publish_run(DefendedRun(chosen.run), defence=defence)
    from actors.endpoint.arguments import EndpointArguments
    from actors.endpoint.server import free_port, served

    place = str(chosen.run.resolve())
    # No limit of a rate: what is measured is the server.
    port = free_port("127.0.0.1")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        keys_file = Path(folder) / "keys.json"
        keys = {name: Keys.load(keys_file).add(name) for name in DefendedRun(chosen.run).tested[:HOSPITALS]}
        arguments = EndpointArguments(versions=place, state=place, keys=str(keys_file), rate=1e6, burst=10**6)
        operator = Operator(arguments.audit_log, keys_file, next(iter(keys.values())), port)
        scans = {defence: _scans(chosen.run, number, Path(folder) / defence) for defence, number in numbers.items()}
        versions.promote(numbers[scenarios[0].defence])
        with served(arguments, host="127.0.0.1", port=port):
            for scenario in scenarios:
                versions.promote(numbers[scenario.defence])
                url = f"http://127.0.0.1:{port}"
                _wait_for(url, numbers[scenario.defence])
                rows.append(_measured(scenario, url, scans[scenario.defence], Path(folder), keys, operator))
                print(json.dumps(rows[-1]), flush=True)
        versions.promote(numbers["full"])
    table = pd.DataFrame(rows)
    if chosen.only and chosen.out.exists():
        before = pd.read_csv(chosen.out)
        table = pd.concat([before[~before["scenario"].isin(table["scenario"])], table])
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(chosen.out, index=False)
    whole, bare = (
        table.loc[table["scenario"].str.contains(f"clean, {name}"), "answers_per_s"].mean() for name in ("full", "bare")
    )
    print(f"clean scans: {whole:.1f} of {bare:.1f} answers a second, {100 * whole / bare:.0f} % of the bare classifier")


def _defence(version: Path) -> str:
    hospital_id = sorted(entry.name for entry in version.iterdir() if (entry / "bundle.json").is_file())[0]
    return bundle_of(version, hospital_id).card.defence


def _scans(run_folder: Path, version: str, folder: Path) -> list[dict[str, object]]:
    """Test scans and attacked ones as files, and what the library says of each."""
    folder.mkdir()
    run = DefendedRun(run_folder)
    scans: list[dict[str, object]] = []
    for hospital_id in run.tested[:HOSPITALS]:
        parts = run.hospital(hospital_id)
        bundle = bundle_of(RunVersions(run_folder).folder(version), hospital_id)
        defended = bundle.defended(KeyedNoise(open_secret(secret_path(run_folder, hospital_id))))
        images, labels = parts.test[0][:SCANS], parts.test[1][:SCANS]
        attacked = attack_hospital(
            "T2",
            Victim.of(parts, parts, parts.defended("full")),
            images,
            labels,
            epsilon=EPSILON,
            generator=torch_generator(0, "load", hospital_id),
        )
        for name, some in (("clean", images), ("attacked", attacked)):
            stored = (some * 255).round() / 255
            for number, (image, said) in enumerate(zip(stored, defended.diagnose(stored), strict=True)):
                file = folder / f"{hospital_id}-{name}-{number}.png"
                file.write_bytes(picture(image.numpy()))
                shares = dict(zip(bundle.card.classes, said.probabilities, strict=True))
                scans.append(
                    {
                        "file": str(file),
                        "hospital": hospital_id,
                        "attacked": name == "attacked",
                        "expected": {"probabilities": shares, "flagged": said.flagged},
                    }
                )
    return scans


def _measured(
    scenario: Scenario,
    url: str,
    scans: list[dict[str, object]],
    folder: Path,
    keys: dict[str, str],
    operator: Operator,
) -> dict[str, object]:
    for scan in scans[:: len(scans) // HOSPITALS]:  # the models are loaded before the clock starts
        _post(url, scan, keys)
    plan, records = folder / "plan.json", folder / "records.jsonl"
    share = scenario.attacked_share
    plan.write_text(
        json.dumps(
            {"scans": scans, "attacked_share": share, "steps": scenario.steps, "records": str(records), "keys": keys}
        )
    )
    locustfile = Path(__file__).with_name("locustfile.py")
    words = [
        "-m",
        "locust",
        "-f",
        str(locustfile),
        "--headless",
        "--host",
        url,
        "--loglevel",
        "ERROR",
    ]
    timers = [threading.Timer(at, getattr(operator, what, partial(_kill, what))) for at, what in scenario.events]
    for timer in timers:
        timer.start()
    subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "LOAD_PLAN": str(plan)},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=300,
    )
    for timer in timers:
        timer.join()
    frame = pd.DataFrame([json.loads(line) for line in records.read_text().splitlines()])
    answered = frame[frame["status"] == 200]
    refused = frame[frame["status"] == 503]
    seconds = sum(seconds for seconds, _ in scenario.steps)
    row: dict[str, object] = {
        "scenario": scenario.name,
        "requests": len(frame),
        "answers_per_s": round(len(answered) / seconds, 1),
        "answered": len(answered),
        "told_to_come_back": int((refused["retry_after"].notna()).sum()),
        "other": len(frame) - len(answered) - int((refused["retry_after"].notna()).sum()),
        "wrong": int((~answered["right"].astype(bool)).sum()),
        "longest_wait_s": round(frame["client"].max() / 1000, 1),
        "longest_silence_s": round(float(np.diff(np.sort(frame["at"])).max()), 1),
        "flagged_percent": round(100 * float(answered["flagged"].mean()), 1),
    }
    for stage in STAGES:
        values = answered[stage].dropna() if stage in answered else pd.Series(dtype=float)
        for percent in (50, 95, 99):
            row[f"{stage}_p{percent}_ms"] = round(float(np.percentile(values, percent)), 1) if len(values) else np.nan
    return row


def _post(url: str, scan: dict[str, object], keys: dict[str, str]) -> None:
    data = Path(str(scan["file"])).read_bytes()
    body = b'--x\r\nContent-Disposition: form-data; name="scan"; filename="s"\r\n\r\n' + data + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x", "X-API-Key": keys[str(scan["hospital"])]}
    request = urllib.request.Request(f"{url}/v1/diagnose?hospital={scan['hospital']}", body, headers)
    urllib.request.urlopen(request, timeout=60).read()


def _wait_for(url: str, version: str) -> None:
    while json.load(urllib.request.urlopen(f"{url}/readyz", timeout=60))["version"] != version:
        time.sleep(0.1)


def _kill(part: str) -> None:
    """End a replica that this process started, as a crash would."""
    title = f"ray::ServeReplica:{NAME}:{part}"
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline() and process.cmdline()[0].startswith(title):
                process.send_signal(signal.SIGKILL)
                return


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
