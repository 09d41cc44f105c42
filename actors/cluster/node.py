"""A node of a cluster: the ``ray start`` of this machine, with its label, and a dashboard that is nobody else's."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from actors.cluster import security
from fedplatform.experiments.places import LABEL

DASHBOARD_HOST = "127.0.0.1"
# What 'ray start' prints between these lines would be of no use: its commands have neither token, label nor TLS.
ADVICE, AFTER_ADVICE = ("Next steps", "To terminate the Ray runtime, run"), "--block"


def run_node(words: Sequence[str], say: Callable[[str], None]) -> int:
    """Run 'ray start' until it ends, and return its status. What it prints is passed on, with advice of our own.

    Signals that would end this process end Ray's instead, and this one with it.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    assert child.stdout is not None
    for line in with_own_advice(child.stdout):
        say(line)
    return child.wait()


def with_own_advice(lines: Iterable[str]) -> Iterator[str]:
    """What 'ray start' prints, with this project's next steps in place of Ray's."""
    is_advice = False
    for line in lines:
        bare = line.strip()
        if bare in ADVICE:
            is_advice = True
        elif bare == AFTER_ADVICE:
            is_advice = False
        if not is_advice:
            yield line.rstrip("\n")
        elif found := re.search(r"ray start --address='([^']+)'", line):
            yield from next_steps(found[1])


def next_steps(address: str) -> Iterator[str]:
    """What to do once a head runs at ``address``."""
    tls = f"{security.TLS}=FOLDER " if os.environ.get("RAY_USE_TLS") == "1" else ""
    token = f", with a copy of {security.TOKEN_FILE}" if security.asks_for_token() else ""
    certificate = " and its folder of certificates" if tls else ""
    yield "Next steps"
    yield f"  on each hospital's machine{token}{certificate}:"
    yield f"    {tls}fedplatform node --address {address} --hospital NAME"
    yield "  here:"
    yield f"    {tls}fedplatform doctor federation.yaml --address {address}"
    yield f"    {tls}fedplatform run federation.yaml --address {address}"
    yield f"    {tls}fedplatform ray status"
    yield ""


def ray_start(*, address: str | None, hospital: str | None, in_background: bool, more: Sequence[str]) -> list[str]:
    """The words of the command; the head where there is no ``address``, and ``more`` as ``ray start`` takes them."""
    words = [str(Path(sys.executable).parent / "ray"), "start", "--disable-usage-stats"]
    words += ["--log-style=pretty", "--log-color=false"]  # under systemd, too: with_own_advice knows these lines
    words += ["--head", f"--dashboard-host={DASHBOARD_HOST}"] if address is None else [f"--address={address}"]
    if hospital is not None:
        words.append(f"--labels={LABEL}={hospital}")
    if not in_background:
        words.append("--block")
    return [*words, *more]
