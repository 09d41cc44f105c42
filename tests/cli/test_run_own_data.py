"""``fedplatform run my_scans/``: what its user sees, from the table of settings to the report."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import fedplatform
from PIL import Image

from fedplatform.experiments.experiment import Experiment

README = Path(__file__).parents[2] / "README.md"
COMMANDS = [
    line.strip()
    for line in README.read_text().partition("## Your own scans")[2].partition("## A cluster")[0].splitlines()
    if line.startswith("    fedplatform ")
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with ``my_scans/``: two classes of 20 pictures, 16 pixels a side, one with a bright square."""
    folder = tmp_path_factory.mktemp("home")
    generator = np.random.default_rng(0)
    for label in ("no finding", "lesion"):
        (folder / "my_scans" / label).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(0, 120, (16, 16), dtype=np.uint8)
            if label == "lesion":
                row, column = generator.integers(0, 11, 2)
                pixels[row : row + 5, column : column + 5] = 255
            Image.fromarray(pixels).save(folder / "my_scans" / label / f"{number}.png")
    return folder


def test_a_folder_is_all_that_a_run_needs(home: Path) -> None:
    done = fedplatform(["run", "my_scans/", "--engine", "local", "--name", "first", "--rounds", "2"], home)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.replace("│", " ").split())
    assert "no finding 20" in said
    assert "nobody to defend against" in said
    assert "left 0:00" in said
    assert (home / "runs" / "first" / "report.html").is_file()
    kept = yaml.safe_load((home / "runs" / "first" / "experiment.yaml").read_text())
    assert (kept["byzantine"], kept["rule"], kept["size"], kept["rounds"]) == (0, "mean", 32, 2)
    assert Experiment.from_settings(kept).settings() == kept, "the file runs the same again"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readmes_lines_for_own_data_work_as_written(home: Path, command: str) -> None:
    words = shlex.split(command)[1:]
    quick = ["--engine", "local", "--rounds", "1"] if words[0] == "run" else []
    quick += ["--model", "small_cnn(width=4)"] if "--attack" in words else []
    done = fedplatform([*words, *quick], home)
    assert done.returncode == 0, done.stderr
    assert "report:" in done.stdout or words[0] == "data"


def test_all_files_that_cannot_be_read_are_named_at_once(home: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    for label in ("a", "b"):
        (scans / label).mkdir(parents=True)
        for number, file in enumerate(sorted((home / "my_scans" / "lesion").iterdir())[:12]):
            whole = number % 6 or label == "b"
            (scans / label / file.name).write_bytes(file.read_bytes() if whole else b"\x89PNG no picture")
    for command in (["run", "scans/", "--engine", "local"], ["data", "partition", "scans/", "shards"]):
        done = fedplatform(command, tmp_path)
        assert done.returncode == 1
        assert done.stdout.count("not a whole picture") == 2
        assert "2 files cannot be read; mend them or take them out" in done.stderr
        assert not (tmp_path / "runs").exists()


def test_shards_and_a_comparison_of_own_data(home: Path) -> None:
    done = fedplatform(["data", "partition", "my_scans/", "shards", "--hospitals", "2"], home)
    assert done.returncode == 0, done.stderr
    assert len(list((home / "shards").glob("hospital-*.parquet"))) == 2
    words = ["compare", "my_scans/", "--rules", "mean,median", "--engine", "local", "--rounds", "1"]
    done = fedplatform([*words, "--model", "small_cnn(width=4)", "--name", "table"], home)
    assert done.returncode == 0, done.stderr
    assert "nearest_neighbour" in done.stdout


def test_a_run_folder_is_not_taken_for_data(home: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "runs" / "old" / "experiment.yaml").write_text("data: lesions\n")
    done = fedplatform(["run", "runs/old"], tmp_path)
    assert done.returncode == 1
    assert "runs/old is a run and no data; its settings are runs/old/experiment.yaml" in done.stderr
