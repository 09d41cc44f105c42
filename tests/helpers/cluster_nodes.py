"""Real nodes of a Ray cluster, each started by ``fedplatform node`` on a loopback address of its own."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ATTEMPTS = 4
START_S = 420
STOP_S = 60
SMALL = "--object-store-memory=100000000"


def free_port(host: str = "127.0.0.1") -> int:
    """A port beyond those that Ray's workers draw from (10002 to 19999)."""
    while True:
        with socket.socket() as probe:
            probe.bind((host, 0))
            if (port := probe.getsockname()[1]) > 20000:
                return int(port)


@dataclass
class Nodes:
    """A head and its nodes; commands run beside them, with the token that the head made."""

    folder: Path  # short, for Ray's sockets lie below it
    port: int = field(default_factory=lambda: free_port("127.0.0.2"))
    dashboard_port: int = field(default_factory=free_port)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        without = ("RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "FEDPLATFORM_TLS", "RAY_USAGE_STATS_ENABLED")
        self.home.mkdir(exist_ok=True)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in without},
            "HOME": str(self.home),
            "RAY_TMPDIR": str(self.folder),
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard_port}",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "COLUMNS": "200",
            # A busy machine is slow to start Ray's processes, and Ray is not patient.
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(START_S),
            "RAY_worker_register_timeout_seconds": str(START_S),
        }

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def address(self) -> str:
        return f"127.0.0.2:{self.port}"

    def start(self, command: str, *more: str) -> None:
        """Start a node by its command, on the next loopback address, and wait until it runs."""
        log = self.folder / f"node-{len(self.started)}.log"
        words = [*shlex.split(command), "--", f"--node-ip-address=127.0.0.{len(self.started) + 2}", SMALL, *more]
        words += [f"--dashboard-agent-listen-port={free_port()}"]
        for attempt in range(1, ATTEMPTS + 1):
            with log.open("wb") as output:
                node = subprocess.Popen(
                    words, stdout=output, stderr=subprocess.STDOUT, env=self.environment, cwd=self.folder
                )
            self.started.append(node)
            deadline = time.monotonic() + START_S
            while node.poll() is None and "Ray runtime started" not in log.read_text(errors="replace"):
                assert time.monotonic() < deadline, f"{command} did not start:\n{log.read_text()}"
                time.sleep(0.5)
            if node.poll() is None:
                return
            self.started.remove(node)
            # On a busy machine Ray, which waits for 30 s for itself, gives up; anything else is a fault.
            said = log.read_text(errors="replace")
            assert attempt < ATTEMPTS, said
            assert "timed out during startup" in said, said

    def start_head(self, command: str = "fedplatform node --head", *more: str) -> None:
        """Start the head on the ports that were drawn."""
        client = f"--ray-client-server-port={free_port()}"
        self.start(command, f"--port={self.port}", f"--dashboard-port={self.dashboard_port}", client, *more)

    def run(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command beside the nodes."""
        return subprocess.run(
            shlex.split(command),
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    def stop(self) -> None:
        """End what was started, the head last."""
        for node in reversed(self.started):
            node.terminate()  # 'ray start --block' takes its processes with it
            try:
                node.wait(STOP_S)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
