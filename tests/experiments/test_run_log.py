"""A run's folder has its log, the lines of hospitals in other processes among them; runs are listed and removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import fedplatform
from filelock import FileLock

import fedplatform as fp
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.run import run
from fedplatform.experiments.run_list import list_runs, remove_run

SMALL = {
    **{"data": "lesions", "size": 16, "scans": 120, "hospitals": 3, "byzantine": 0, "rule": "mean", "rounds": 2},
    **{"model": "small_cnn(width=4)", "root_size": 0},
}


def lines_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "run.log").read_text().splitlines()]


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_the_log_has_every_round_and_what_each_hospital_did(engine: str, tmp_path: Path) -> None:
    experiment = Experiment.from_settings(SMALL)
    if engine == "local":
        folder, _ = run(experiment, engine=InProcessEngine(), runs=tmp_path, name="logged", tracked=False)
    else:
        with fp.Ray("local", num_hosts=1) as ray:
            folder, _ = run(experiment, engine=ray, runs=tmp_path, name="logged", tracked=False)
    lines = lines_of(folder.path)
    trained = {(line["round"], line["hospital"]) for line in lines if str(line["message"]).startswith("trained on ")}
    assert trained == {(number, f"hospital-0{site}") for number in (1, 2) for site in range(3)}
    rounds = [line["round"] for line in lines if "balanced accuracy" in str(line["message"])]
    assert rounds == [1, 2]
    assert lines[0]["message"] == "3 hospitals, 2 rounds"
    assert "finished" in [line["message"] for line in lines]


def test_runs_are_listed_with_their_state_and_removed_when_nobody_works_on_them(tmp_path: Path) -> None:
    folder, reports = run(
        Experiment.from_settings(SMALL), engine=InProcessEngine(), runs=tmp_path, name="done", tracked=False
    )
    (listed,) = list_runs(tmp_path)
    assert (listed.name, listed.state, listed.rounds_done, listed.rounds) == ("done", "finished", 2, 2)
    assert listed.balanced_accuracy == pytest.approx(reports[-1].balanced_accuracy)
    assert listed.megabytes > 0
    with FileLock(folder.path / ".lock"):
        assert next(list_runs(tmp_path)).state == "under way"
        with pytest.raises(ExperimentError, match="going on in another process"):
            remove_run(tmp_path, "done")
    (folder.path / "global.safetensors").unlink()
    assert next(list_runs(tmp_path)).state == "stopped"
    (folder.path / "rounds.parquet").write_bytes(b"damaged")
    assert next(list_runs(tmp_path)).state == "unreadable"
    with pytest.raises(ExperimentError, match="did you mean 'done'"):
        remove_run(tmp_path, "dnoe")
    shown = fedplatform(["runs", "list", "--json", "--runs", str(tmp_path)], tmp_path)
    assert json.loads(shown.stdout)[0]["name"] == "done"
    removed = fedplatform(["runs", "rm", "done", "--yes", "--runs", str(tmp_path)], tmp_path)
    assert removed.returncode == 0, removed.stderr
    assert not folder.path.exists()
