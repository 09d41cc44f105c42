"""The command ``fedplatform serve`` as a process of its own, and what a test wants to know of it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from fedplatform.serving.api_keys import Keys

HOSPITALS = ("hospital-00", "hospital-01")
START_S = 240


@dataclass(frozen=True)
class Endpoint:
    """A server that runs: where it is, its run folder, the secrets of its keys by hospital."""

    url: str
    metrics: str
    run: Path
    keys: dict[str, str]
    keys_file: Path
    pid: int

    def headers(self, hospital_id: str = "hospital-01") -> dict[str, str]:
        return {"X-API-Key": self.keys[hospital_id]}

    def diagnose(self, *files: bytes, hospital_id: str = "hospital-01", **parameters: object) -> requests.Response:
        return requests.post(
            f"{self.url}/v1/diagnose",
            params=parameters,
            headers=self.headers(hospital_id),
            files=[("scan", ("scan", data)) for data in files],
            timeout=120,
        )

    def processes(self, title: str) -> list[int]:
        """The processes that the server started whose title begins so."""
        found = []
        for pid in descendants(self.pid):
            try:
                said = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
            except OSError:
                continue
            if said.startswith(title):
                found.append(pid)
        return found


def descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(after[1]), []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(run: Path, folder: Path, *options: str) -> Iterator[Endpoint]:
    """Serve a run folder with a key for each hospital until the block is left."""
    store = Keys.load(folder / "keys.json")
    keys = {hospital_id: store.add(hospital_id) for hospital_id in HOSPITALS}
    port = free_port()
    words = ["serve", str(run), "--port", str(port), "--keys", str(folder / "keys.json"), *options]
    said = folder / "said.txt"
    with said.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "fedplatform", *words], stdout=output, stderr=subprocess.STDOUT, cwd=folder
        )
    try:
        deadline = time.monotonic() + START_S
        while "Ctrl-C" not in said.read_text():
            assert server.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.2)
        metrics = re.search(r"metrics: (\S+)", said.read_text())
        assert metrics is not None
        yield Endpoint(f"http://127.0.0.1:{port}", metrics[1], run, keys, folder / "keys.json", server.pid)
    finally:
        server.terminate()
        server.wait(timeout=60)


@contextmanager
def traffic(endpoint: Endpoint, scan: bytes) -> Iterator[list[requests.Response]]:
    """Two clients that ask one question after the other while the block runs; the responses."""
    responses: list[requests.Response] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            responses.append(endpoint.diagnose(scan))

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            yield responses
        finally:
            over.set()
        for one in asking:
            one.result()


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
