"""The peers' own environment: a folder ``.venv-peers``, made once from ``benchmarks/peers.txt``.

They do not install beside this project: Flower's simulation wants another Ray, ByzPy another PyTorch. What its file
pins is installed without asking what else they would like, which is what makes them run together at all.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from benchmarks.speed.arena import ROOT

PINS = ROOT / "benchmarks" / "peers.txt"
FOLDER = ROOT / ".venv-peers"
PEERS = ("byzfl", "byzpy", "fedlab", "flower", "krum", "pfl", "qora")


def environment(say: Callable[[str], object]) -> Path | str:
    """The interpreter of the peers' environment, made anew where the pins have changed; or why there is none."""
    python, stamp = FOLDER / "bin" / "python", FOLDER / ".made-from"
    digest = sha256(PINS.read_bytes()).hexdigest()
    if python.exists() and stamp.is_file() and stamp.read_text() == digest:
        return python
    say("installing the peers into .venv-peers, once: some two minutes")
    steps = (
        [sys.executable, "-m", "venv", "--clear", str(FOLDER)],
        [str(python), "-m", "pip", "install", "--quiet", "setuptools", "wheel"],
        [
            *(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-requires-python"),
            *("--no-build-isolation", "--requirement", str(PINS)),
        ],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"not installed: {(done.stderr.strip().splitlines() or ['pip failed'])[-1][:200]}"
    stamp.write_text(digest)
    return python
