"""The command line called in this process: what it prints and how it ends, without the seconds of a fresh one."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from fedplatform.cli import main


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def fedplatform(words: list[str], folder: Path) -> Finished:
    """Run ``fedplatform WORDS`` in a folder, which Python finds the user's modules in."""
    before = sys.argv, list(sys.path), Path.cwd()
    out, err = io.StringIO(), io.StringIO()
    status = 0
    try:
        os.chdir(folder)
        sys.argv = ["fedplatform", *words]
        sys.path.insert(0, str(folder))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv, sys.path[:] = before[:2]
        os.chdir(before[2])
    return Finished(status, out.getvalue(), err.getvalue())
