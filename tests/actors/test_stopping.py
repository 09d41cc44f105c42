"""A command that systemd or Kubernetes stops by SIGTERM ends as by Ctrl-C: rounds kept, one line, status 143."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from actors.cluster.joining import _log
from fedplatform.outside.identity import make_key

PROGRAM = [sys.executable, "-m", "fedplatform"]
SMALL = (
    "run lesions --size 16 --scans 120 --hospitals 3 --byzantine 0 --rule mean --root-size 0 --partition iid "
    "--rounds 5000 --model small_cnn(width=4) --name long"
)


def stopped(words: list[str], folder: Path, sign: Path, *, number: int = signal.SIGTERM) -> tuple[int, str]:
    """Start a command, send it a signal once a file is there, and return its status and what it complained."""
    environment = os.environ | {"RAY_TMPDIR": "/tmp"}
    process = subprocess.Popen(
        [*PROGRAM, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        until = time.monotonic() + 300
        while not list(folder.glob(str(sign))):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, complaint


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_run_that_is_terminated_keeps_its_rounds_and_says_how_to_go_on(engine: str, tmp_path: Path) -> None:
    words = [*shlex.split(SMALL), "--engine", engine, "--hosts", "1"]
    status, complaint = stopped(words, tmp_path, Path("runs/long/checkpoints/*2*"))
    assert status == 128 + signal.SIGTERM
    again = f"fedplatform run --resume long --engine {engine} --hosts 1"
    assert complaint.splitlines()[-1] == f"fedplatform: stopped; finished rounds are kept; go on with: {again}"
    assert "Traceback" not in complaint
    assert "SIGTERM" not in complaint, "Ray's C++ trace"


@pytest.mark.slow
def test_a_search_that_is_stopped_says_that_the_same_command_goes_on(tmp_path: Path) -> None:
    words = shlex.split("tune poisoning --rule median --trials 500 --jobs 1 --name study")
    status, complaint = stopped(words, tmp_path, Path("runs/study/trials/*"))
    assert status == 128 + signal.SIGTERM
    assert complaint.strip().endswith("the same command goes on from here")


def test_one_hospital_joins_once_with_one_folder(tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    (tmp_path / "scans").mkdir()
    (tmp_path / "joined/st-mary").mkdir(parents=True)
    words = "join https://127.0.0.1:1 --hospital st-mary --data scans --key key --yes"
    with FileLock(tmp_path / "joined/st-mary/.lock"):
        done = subprocess.run(
            [*PROGRAM, *shlex.split(words)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("is going on in another process")


def test_what_ray_prints_of_a_dead_node_is_one_line_of_the_log(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level("INFO", logger="actors"):
        _log({"lines": ["Raylet is terminated. Possible reasons:\n    [state-dump] forty\n    lines\n"]}, False)
    assert [record.getMessage() for record in caplog.records] == ["Ray: Raylet is terminated"]
    assert capsys.readouterr().out == ""
