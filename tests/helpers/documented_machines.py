"""Machines with addresses, homes and disks of their own, on which commands are given as the docs have them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from doc_pages import ROOT

from benchmarks.network import Cables

PATIENCE_S = 600
# What stands in the docs for what is different at every place.
PLACEHOLDERS = {"HEAD:6379": "10.77.0.1:6379", "federation.example:8443": "10.77.0.1:8443", "runs/NAME": "runs/joined"}


@dataclass
class Machine:
    """One machine: a network namespace, a home, a working folder with ``tls/``, and a /srv that is nobody else's."""

    number: int
    folder: Path
    cables: Cables
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place in (self.folder / "home", self.disk):
            place.mkdir(parents=True)
        foreign = ("RAY_", "FEDPLATFORM_", "MLFLOW_")
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(foreign) and not name.lower().endswith("_proxy")
            },
            **{"HOME": str(self.folder / "home"), "RAY_TMPDIR": str(self.folder), "FEDPLATFORM_TLS": "tls/"},
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "COLUMNS": "200",
        }

    @property
    def address(self) -> str:
        return f"10.77.0.{self.number + 1}"

    @property
    def cluster(self) -> str:
        """Where the cluster of which this machine is the head can be joined."""
        return f"{self.address}:6379"

    @property
    def disk(self) -> Path:
        """What this machine has as /srv."""
        return self.folder / "srv"

    def begin(
        self, page: str, line: str, *more: str, log: str, within: Path | None = None, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Give a line of a page, and go on while it runs; what it says goes to a file in the machine's folder."""
        return self._start([*shlex.split(as_documented(page, line)), *more], log, within, environment)

    def _start(
        self, words: list[str], log: str, within: Path | None, environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as output:
            process = subprocess.Popen(
                [
                    *self.cables.on(self.number),
                    "sh",
                    "-c",
                    'mount --bind "$0" /srv && exec "$@"',
                    str(self.disk),
                    *words,
                ],
                cwd=within or self.folder,
                env={**self.environment, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def give(self, page: str, line: str, *more: str, status: int = 0, within: Path | None = None, **env: str) -> str:
        """Give a line of a page, wait for its end, see that it ends with a status, and return what it said."""
        return self._finish([*shlex.split(as_documented(page, line)), *more], status, within, env)

    def do(self, command: str, *, status: int = 0, within: Path | None = None, **env: str) -> str:
        """The same for a command that no page has, such as one that another command printed."""
        return self._finish(shlex.split(command), status, within, env)

    def _finish(self, words: list[str], status: int, within: Path | None, environment: dict[str, str]) -> str:
        log = f"said-{len(self.started)}.txt"
        process = self._start(words, log, within, environment)
        process.wait(PATIENCE_S)
        said = self.said(log)
        assert process.returncode == status, f"{shlex.join(words)}\n{said}"
        return said

    def said(self, log: str) -> str:
        return (self.folder / log).read_text(errors="replace")

    def until_said(self, log: str, words: str, process: subprocess.Popen[bytes]) -> str:
        """Wait until a command that runs has said something."""
        until(lambda: words in self.said(log) or process.poll() is not None, f"{words!r} in {log}")
        assert words in self.said(log), self.said(log)
        return self.said(log)

    def stop(self) -> None:
        for process in reversed(self.started):
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@dataclass
class Machines:
    """Four machines on one bridge: the head, two hospitals of the cluster, and one hospital outside."""

    folder: Path  # short, for Ray's sockets lie below it
    cables: Cables = field(default_factory=lambda: Cables(nodes=3))
    all: list[Machine] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.all = [Machine(number, self.folder / str(number), self.cables) for number in range(4)]

    @property
    def shared(self) -> Path:
        """A folder that all machines see under the same path."""
        place = self.folder / "shared"
        place.mkdir(exist_ok=True)
        return place

    def remove(self) -> None:
        for machine in reversed(self.all):
            machine.stop()
        self.cables.remove()
        shutil.rmtree(self.folder, ignore_errors=True)


def as_documented(page: str, line: str) -> str:
    """A line of a page, with this network's addresses in place of the page's; the page must have that line."""
    assert line in " ".join((ROOT / "docs" / page).read_text().split()), f"docs/{page} has no line {line!r}"
    for word, here in PLACEHOLDERS.items():
        line = line.replace(word, here)
    return line


def until(happened: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.3)
