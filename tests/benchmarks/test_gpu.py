"""The check of a GPU: what it calls agreement, and its dry run on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu.agreement import Check, checks
from benchmarks.gpu.work import Sizes, Work
from fedplatform.core.compute import Compute

ROOT = Path(__file__).parents[2]
TINY = Sizes(side=16, scans=24, network="resnet18", large_side=32, batch=4, steps=2, repeats=1)


def test_an_answer_too_far_away_fails_and_so_does_one_that_is_no_number() -> None:
    assert Check("a", "b", 0.1, 0.1).passed
    assert not Check("a", "b", 0.2, 0.1).passed
    assert not Check("a", "b", float("nan"), 0.1).passed


def test_other_weights_are_found_out(tmp_path: Path) -> None:
    here, there = (Work(Compute("cpu"), TINY, tmp_path) for _ in range(2))
    there.root.weights[:] = there.root.weights + np.float32(0.1)
    with torch.no_grad():
        for parameter in there.defended.classifier.parameters():
            parameter.mul_(1.5)
    failed = {check.part for check in checks(here, there) if not check.passed}
    assert "logits of the whole defence" in failed
    assert "training, float32" not in failed


@pytest.mark.slow
def test_the_dry_run_passes_on_a_cpu() -> None:
    script = ROOT / "benchmarks" / "gpu.sh"
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([script, "--device", "cpu"], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "all agree"), done.stderr
