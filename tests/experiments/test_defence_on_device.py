"""The defence of a run on another device than the CPU: the same scores, purified scans, attacks and certificates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from other_device import CPU, ELSEWHERE, OtherDevice

from fedplatform.cli import fedplatform
from fedplatform.core.compute import Compute
from fedplatform.core.seeding import torch_generator
from fedplatform.defence.presets import DEFENCES
from fedplatform.defence.threats import Budget, Victim, attack_hospital
from fedplatform.experiments.defence.attack import Place, attack_scans
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.experiments.defence.plan import Plan, Task

SCANS = slice(0, 6)
EPSILON = 8 / 255
BUDGET = Budget(steps=3, eot=1, queries=20)
TIERS = ("T1", "T2", "T3", "T4", "T4_unnoticed", "T5", "apgd(steps=4)", "fab(steps=3)", "hop_skip_jump(queries=20)")


@pytest.mark.parametrize("defence", list(DEFENCES))
def test_every_defence_is_fitted_and_answers_as_on_the_cpu(defended: Path, defence: str) -> None:
    here = DefendedRun(defended).hospital("hospital-00")
    expected, scans = here.defended(defence), here.test[0][SCANS]
    with OtherDevice() as card:
        there = DefendedRun(defended, device=ELSEWHERE).hospital("hospital-00").defended(defence)
        with torch.no_grad():
            passage = there.passage(scans.to(ELSEWHERE))
        assert passage.logits.device == ELSEWHERE
        logits, scores, purified = (part.to(CPU) for part in (passage.logits, passage.scores, passage.purified))
    assert card.computed > 100
    assert there.temperature == pytest.approx(expected.temperature, rel=1e-3)
    assert there.gate.threshold == pytest.approx(expected.gate.threshold, abs=1e-3)
    with torch.no_grad():
        passage = expected.passage(scans)
    torch.testing.assert_close(scores, passage.scores, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits, passage.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(purified, passage.purified, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tier", TIERS)
def test_an_attacker_on_another_device_moves_the_same_pixels(defended: Path, tier: str) -> None:
    def attacked(run: DefendedRun) -> torch.Tensor:
        parts, neighbour = (run.hospital(name) for name in run.tested[:2])
        made = attack_hospital(
            tier,
            Victim.of(parts, neighbour, parts.defended("full")),
            parts.test[0][SCANS],
            parts.test[1][SCANS],
            epsilon=EPSILON,
            budget=BUDGET,
            generator=torch_generator(0, "test"),
        )
        assert made.device == run.device
        return made.to(CPU)

    with OtherDevice() as card:
        there = attacked(DefendedRun(defended, device=ELSEWHERE))
    assert card.computed > 100
    same = (there - attacked(DefendedRun(defended))).abs() < 1e-4
    # A gradient of nearly nothing may have either sign.
    assert float(same.float().mean()) > 0.98


def test_an_evaluations_rows_are_those_of_the_cpu(defended: Path) -> None:
    def rows(compute: Compute) -> pd.DataFrame:
        place = Place(defended, defended / "shards", compute)
        plan = Plan(scans=8, hard_scans=8, budget=BUDGET)
        tasks = [Task(defence, "T2", EPSILON, "hospital-00") for defence in ("nearest_neighbour", "full")]
        return pd.DataFrame([row for task in tasks for row in attack_scans(place, task, plan)])

    with OtherDevice():
        there = rows(Compute(str(ELSEWHERE)))
    here = rows(Compute("cpu"))
    compared = [name for name in here.columns if name not in ("milliseconds", "score", "threshold")]
    pd.testing.assert_frame_equal(there[compared], here[compared])
    np.testing.assert_allclose(there["score"], here["score"], rtol=1e-2, atol=1e-2)


def test_a_certificate_is_that_of_the_cpu(defended: Path) -> None:
    def certificate(run: DefendedRun) -> object:
        parts = run.hospital("hospital-00")
        return parts.defended("full").certify(
            parts.test[0][0], sigma=0.25, samples=40, generator=torch_generator(0, "certificate")
        )

    with OtherDevice() as card:
        there = certificate(DefendedRun(defended, device=ELSEWHERE))
    assert card.computed > 100
    assert there == certificate(DefendedRun(defended))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("command", ["evaluate", "certify", "defend"])
def test_a_gpu_that_is_not_there_is_one_line(defended: Path, command: str) -> None:
    engine = ["--engine", "local"] if command == "defend" else []
    done = CliRunner().invoke(fedplatform, [command, str(defended), "--device", "cuda", *engine])
    assert done.exit_code == 1
    assert done.stderr.startswith("fedplatform: --device cuda: this machine has no CUDA GPU; --device auto takes")
    assert done.stderr.count("\n") == 1
