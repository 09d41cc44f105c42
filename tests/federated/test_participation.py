"""A share of the hospitals in each round: who is drawn, what becomes of the others, and that all cohorts agree."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedplatform.core.messages import HospitalState, RoundReport
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment, ExperimentError


def reports_of(
    experiment: Experiment, shards: Path, folder: Path, *, checkpoints: Path | None = None
) -> tuple[list[RoundReport], bytes]:
    with InProcessEngine().launch(experiment, shards, state_folder=folder, checkpoints=checkpoints) as federation:
        return list(federation.reports()), federation.outcome().weights.tobytes()


@pytest.fixture(scope="module")
def some(small: Experiment) -> Experiment:
    """Three of five hospitals a round, over six rounds."""
    return small.replace(participation=0.5, byzantine=0, attack="none", rule="mean", rounds=6)


def test_as_many_take_part_as_asked_for_and_everybody_in_the_end(
    some: Experiment, shards: Path, tmp_path: Path
) -> None:
    reports, _ = reports_of(some, shards, tmp_path)
    took_part: Counter[str] = Counter()
    for report in reports:
        resting = [record for record in report.hospitals if record.state is HospitalState.RESTING]
        assert len(report.hospitals) == 5
        assert len(resting) == 2
        assert all(record.weight == 0 and not record.num_examples and not record.reason for record in resting)
        judging = [record for record in resting if record.judged]
        assert judging, "who rests judges the new model all the same, where it has test scans"
        assert all(np.isfinite(record.accuracy) for record in judging)
        assert sum(record.weight for record in report.hospitals) == pytest.approx(1)
        took_part.update(record.hospital_id for record in report.hospitals if record.weight)
    assert set(took_part) == set(some.hospital_ids())
    assert len(set(took_part.values())) > 1, "drawn, not dealt in turn"


def test_who_takes_part_depends_on_the_seed_and_the_round_alone(some: Experiment, shards: Path, tmp_path: Path) -> None:
    def drawn(reports: list[RoundReport]) -> list[set[str]]:
        return [{record.hospital_id for record in report.hospitals if record.weight} for report in reports]

    first, weights = reports_of(some, shards, tmp_path / "a")
    again, same = reports_of(some, shards, tmp_path / "b")
    assert (drawn(first), weights) == (drawn(again), same)
    other, _ = reports_of(some.replace(rule="median"), shards, tmp_path / "c")
    assert drawn(other) == drawn(first)


@pytest.mark.parametrize("optimiser", ["average", "fedadam(learning_rate=0.02)"])
def test_a_run_that_goes_on_from_its_checkpoint_draws_and_steps_as_if_unbroken(
    some: Experiment, shards: Path, tmp_path: Path, optimiser: str
) -> None:
    some = some.replace(server_optimiser=optimiser, rule="trust", root_size=20)
    _, unbroken = reports_of(some, shards, tmp_path / "unbroken")
    kept = tmp_path / "checkpoints"
    with InProcessEngine().launch(some, shards, state_folder=tmp_path / "state", checkpoints=kept) as federation:
        reports = federation.reports()
        for _ in range(3):
            next(reports)
    went_on, weights = reports_of(some, shards, tmp_path / "state", checkpoints=kept)
    assert [report.round_number for report in went_on] == [4, 5, 6]
    assert weights == unbroken


@pytest.mark.parametrize("rule", ["trust", "nnm+trimmed_mean"])
@pytest.mark.parametrize("attack", ["min_max", "label_flip", "free_rider"])
def test_attackers_attack_in_the_rounds_they_are_drawn_for(
    small: Experiment, shards: Path, tmp_path: Path, attack: str, rule: str
) -> None:
    attacked = small.replace(participation=0.8, byzantine=2, f=1, attack=attack, rule=rule, rounds=3, quorum=2)
    reports, _ = reports_of(attacked, shards, tmp_path)
    byzantine = set(attacked.adversary().hospital_ids)
    seen = [{record.hospital_id for record in report.hospitals if record.num_examples} for report in reports]
    assert all(len(names) == 4 for names in seen)
    assert all(names & byzantine for names in seen)
    assert any(names & byzantine != byzantine for names in seen), "one of the two rests in some round"


def test_participation_works_behind_masks(small: Experiment, shards: Path, tmp_path: Path) -> None:
    masked = small.replace(
        participation=0.8, byzantine=0, attack="none", rule="mean", privacy="grouped(size=2)", rounds=3, quorum=2
    )
    reports, _ = reports_of(masked, shards, tmp_path)
    for report in reports:
        assert sum(record.state is HospitalState.RESTING for record in report.hospitals) == 1
        assert sum(record.weight > 0 for record in report.hospitals) == 4


def test_a_rule_is_held_against_the_hospitals_of_a_round() -> None:
    fifty = {"hospitals": 50, "byzantine": 10, "rule": "krum"}
    assert Experiment.from_settings({**fifty, "participation": 0.3}).f == 3
    assert Experiment.from_settings({**fifty, "participation": 0.3}).quorum == 8
    with pytest.raises(ExperimentError, match="needs n >= 2f"):
        Experiment.from_settings({**fifty, "participation": 0.3, "f": 10})
    with pytest.raises(ExperimentError, match="participation"):
        Experiment.from_settings({**fifty, "participation": 0})
    with pytest.raises(ExperimentError, match="quorum is at most the number of hospitals in a round, got 20 of 15"):
        Experiment.from_settings({**fifty, "participation": 0.3, "quorum": 20})


def command(*words: object, runs: Path) -> list[str]:
    return [sys.executable, "-m", "fedplatform", "run", *map(str, words), "--runs", str(runs), "--engine", "local"]


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_round_costs_no_bit_under_participation_and_fedadam(tmp_path: Path) -> None:
    words = (
        *(
            "lesions",
            "--size",
            16,
            "--scans",
            240,
            "--hospitals",
            8,
            "--partition",
            "iid",
            "--byzantine",
            0,
            "--rule",
            "mean",
        ),
        *("--participation", 0.5, "--server-optimiser", "fedadam(learning_rate=0.02)", "--ema", 0.5),
        *("--rounds", 5, "--local-epochs", 6, "--root-size", 0),
    )
    unbroken = subprocess.run(command(*words, "--name", "unbroken", runs=tmp_path), capture_output=True, check=False)
    assert unbroken.returncode == 0, unbroken.stderr
    with subprocess.Popen(command(*words, "--name", "hurt", runs=tmp_path), stdout=subprocess.PIPE, text=True) as hurt:
        assert hurt.stdout is not None
        for line in hurt.stdout:
            if line.startswith("round 2/5"):
                hurt.kill()  # SIGKILL; round 3 is under way
                break
    assert hurt.returncode == -9
    assert not (tmp_path / "hurt" / "global.safetensors").exists()
    resumed = subprocess.run(command("--resume", "hurt", runs=tmp_path), capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after round" in resumed.stdout
    models = [(tmp_path / name / "global.safetensors").read_bytes() for name in ("unbroken", "hurt")]
    assert models[0] == models[1]
