"""Machines with addresses of their own: a Ray node in each network namespace, and a bridge between that can be cut.

Needs root and iproute2. Every process that is killed here runs in a namespace that was made here.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
# A machine is dead after some twelve seconds of silence, in place of a minute; a slow one answers sooner.
HEALTH = {"initial_delay_ms": "0", "period_ms": "1000", "timeout_ms": "3000", "failure_threshold": "3"}


def missing_rights() -> str:
    """What this process lacks for networks of its own, in words; empty where nothing."""
    if not shutil.which("ip") or not shutil.which("tc"):
        return "networks of one's own need iproute2 (ip, tc)"
    name = f"fp{os.getpid()}x"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return f"networks of one's own need the right to make them: {tried.stderr.strip()}" if tried.returncode else ""


class Cables:
    """Machines 0, 1, ... with addresses of their own, 10.77.0.1, 10.77.0.2, ..., on one bridge."""

    def __init__(self, *, nodes: int) -> None:
        self._names = [f"fp{os.getpid()}n{number}" for number in range(nodes + 1)]
        self._switch = f"fp{os.getpid()}s"
        self._add_switch()
        for number in range(nodes + 1):
            self._plug_in(number)

    def plug_in_here(self) -> str:
        """Have this machine itself on the bridge, until the network is removed; its address there."""
        here, address = f"fp{os.getpid()}h", "10.77.0.254"
        self._do("ip", "link", "add", here, "type", "veth", "peer", "name", "here", "netns", self._switch)
        self._in(self._switch, "ip", "link", "set", "here", "master", "bridge0", "up")
        self._do("ip", "addr", "add", f"{address}/24", "dev", here)
        self._do("ip", "link", "set", here, "up")
        return address

    def on(self, number: int) -> tuple[str, ...]:
        """What stands before a command to have it run on a machine."""
        return ("ip", "netns", "exec", self._names[number])

    def cut(self, number: int) -> None:
        """Pull the cable of a node."""
        self._in(self._switch, "ip", "link", "set", f"port{number}", "down")

    def heal(self, number: int) -> None:
        """Put it back."""
        self._in(self._switch, "ip", "link", "set", f"port{number}", "up")

    def slow_down(self, number: int, rate: str) -> None:
        """Let no more than ``rate`` (such as ``1mbit``) through, in either direction."""
        queue = ("root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms")
        self._in(self._switch, "tc", "qdisc", "add", "dev", f"port{number}", *queue)
        self._in(self._names[number], "tc", "qdisc", "add", "dev", "eth0", *queue)

    def speed_up(self, number: int) -> None:
        """Let everything through again."""
        self._in(self._switch, "tc", "qdisc", "del", "dev", f"port{number}", "root")
        self._in(self._names[number], "tc", "qdisc", "del", "dev", "eth0", "root")

    def remove(self) -> None:
        """End all processes in these namespaces, and the namespaces."""
        for name in [*self._names, self._switch]:
            for process in self._processes(name):
                os.kill(process, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def _add_switch(self) -> None:
        self._do("ip", "netns", "add", self._switch)
        self._in(self._switch, "ip", "link", "add", "bridge0", "type", "bridge")
        self._in(self._switch, "ip", "link", "set", "bridge0", "up")

    def _plug_in(self, number: int) -> None:
        name, port = self._names[number], f"port{number}"
        self._do("ip", "netns", "add", name)
        self._in(name, "ip", "link", "set", "lo", "up")
        self._in(self._switch, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        self._in(self._switch, "ip", "link", "set", port, "master", "bridge0", "up")
        self._in(name, "ip", "addr", "add", f"10.77.0.{number + 1}/24", "dev", "eth0")
        self._in(name, "ip", "link", "set", "eth0", "up")
        self._in(name, "ip", "route", "add", "default", "dev", "eth0")  # Ray asks the route for its own address

    def _in(self, name: str, *command: str, environment: dict[str, str] | None = None) -> None:
        self._do("ip", "netns", "exec", name, *command, environment=environment)

    @staticmethod
    def _do(*command: str, environment: dict[str, str] | None = None) -> None:
        done = subprocess.run(
            command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")

    @staticmethod
    def _processes(name: str) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
        return [int(word) for word in listed.stdout.split()]


class Network(Cables):
    """A Ray head on machine 0, and hospital nodes on the others."""

    def __init__(self, folder: Path, *, nodes: int) -> None:
        super().__init__(nodes=nodes)
        self.address = "10.77.0.1:6379"
        self._ray(0, "--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}/ray")
        for number in range(1, nodes + 1):
            self.join(number)

    @property
    def on_the_head(self) -> tuple[str, ...]:
        """What stands before a command to have it run on the head."""
        return self.on(0)

    def join(self, number: int) -> None:
        """Start Ray on a node, anew where it ran before: what systemd or a pod's restart policy would do."""
        for process in self._processes(self._names[number]):
            os.kill(process, signal.SIGKILL)
        self._ray(number, f"--address={self.address}", "--num-cpus=1")

    def _ray(self, number: int, *options: str) -> None:
        health = {f"RAY_health_check_{name}": value for name, value in HEALTH.items()}
        command = [*RAY, "start", f"--node-ip-address=10.77.0.{number + 1}", "--object-store-memory=80000000"]
        self._in(self._names[number], *command, "--disable-usage-stats", *options, environment=health)
