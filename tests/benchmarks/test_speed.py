"""The benchmark of speed: in tiny sizes, without peers, for its rows and not for its figures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from benchmarks import samplers
from benchmarks.speed.arena import Arena, Result
from benchmarks.speed.definitions import Definitions
from benchmarks.speed.fingerprint import exact_values
from benchmarks.speed.goals import markdown
from benchmarks.speed.table import Table

ROOT = Path(__file__).parents[2]


def measured(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.speed", "--tiny", "--without-peers", "--repeats", "2", *options]
    outcome = ["--out", str(folder / "speed.csv"), "--picture", str(folder / "speed.png")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *outcome], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_the_command_leaves_a_row_for_every_rule_a_picture_and_the_goals(tmp_path: Path) -> None:
    done = measured(tmp_path, "--work", "rules,rounds")
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "speed.csv")
    ours = rows[rows["system"] == "ours"].set_index("work")
    for work in ("rules/median", "rules/krum", "rules/geometric_median", "rules/nnm", "rules/fltrust", "rounds/one"):
        row = ours.loc[work]
        assert row["repeats"] == 2
        assert 0 < row["cpu_min"] <= row["cpu_s"] <= row["cpu_max"]
        assert row["ratio_to_limit"] > 0
    errors = ours["error"].dropna()
    assert set(errors.index) >= {"rules/median", "rules/krum", "rules/geometric_median", "rules/nnm", "rules/fltrust"}
    assert (errors < 1e-5).all()
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    assert "largest error to the float64 definition" in done.stdout
    assert rows["ratio_to_best_peer"].isna().all()  # nobody's figure is made up where no peer is


def test_an_unknown_work_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    done = measured(tmp_path, "--work", "rulez")
    assert done.returncode == 2
    assert "rulez" in done.stderr
    assert "rules" in done.stderr
    assert not (tmp_path / "speed.csv").exists()


def test_a_peer_that_is_not_installed_is_said_so_in_its_place(tmp_path: Path) -> None:
    table = Table(tmp_path / "speed.csv")
    with Arena(
        tmp_path, {"byzfl": "not installed: no network", "plain": Path(sys.executable)}, print
    ).opened() as arena:
        rows = np.random.default_rng(0).standard_normal((5, 100), dtype=np.float32)
        np.save(tmp_path / "updates.npy", rows)
        arguments = {"deltas": str(tmp_path / "updates.npy"), "f": 1, "radius": 3.0}
        results = arena.turns("median", ("byzfl", "plain"), repeats=1, arguments=arguments, keep_result=True)
    table.add("rules/median", results, n=5, d=100)
    found = pd.read_csv(tmp_path / "speed.csv").set_index("system")
    assert found.loc["byzfl", "note"] == "not installed: no network"
    assert np.isnan(found.loc["byzfl", "cpu_s"])
    right = Definitions(rows, f=1, radius=3.0)("median")
    np.testing.assert_allclose(next(r.result for r in results if r.system == "plain"), right, rtol=1e-6)


def test_what_is_measured_again_replaces_its_rows_and_no_others(tmp_path: Path) -> None:
    table = Table(tmp_path / "speed.csv")
    table.add("rules/krum", [Result("ours", {"cpu_s": [4.0], "wall_s": [4.0]})], n=10, d=100)
    table.add("rules/krum", [Result("ours", {"cpu_s": [9.0], "wall_s": [9.0]})], n=32, d=100)
    again = [Result("ours", {"cpu_s": [1.0, 3.0], "wall_s": [1.0, 3.0]}), Result("krum", {"cpu_s": [8.0]})]
    Table(tmp_path / "speed.csv").add("rules/krum", again, n=10, d=100, limit_s=0.5)
    rows = pd.read_csv(tmp_path / "speed.csv").set_index(["n", "system"])
    assert rows.loc[(10, "ours"), "cpu_s"] == 2.0
    assert rows.loc[(10, "ours"), "ratio_to_best_peer"] == 0.25
    assert rows.loc[(10, "ours"), "ratio_to_limit"] == 4.0
    assert rows.loc[(32, "ours"), "cpu_s"] == 9.0
    assert "krum, 10 x 0.0001 M: times faster than the best peer | 4 x | at least 2 x | met" in markdown(
        rows.reset_index()
    )


def test_exact_shapley_values_of_a_game_of_gloves() -> None:
    # One left glove (hospital 0), two right ones: a pair is worth 1. Known values: 2/3, 1/6, 1/6.
    game = np.array([float(mask & 1 and mask & 6 != 0) for mask in range(8)])
    assert exact_values(game, 3) == pytest.approx([2 / 3, 1 / 6, 1 / 6])


@pytest.mark.slow
def test_every_way_back_answers_the_same_scans_and_nothing_is_measured_twice(defended: Path, tmp_path: Path) -> None:
    options = [
        str(defended),
        "--scans",
        "8",
        "--hard-scans",
        "4",
        "--depths",
        "12",
        "--out",
        str(tmp_path / "ways.csv"),
    ]
    first = CliRunner().invoke(samplers.main, options)
    assert first.exit_code == 0, first.output
    rows = pd.read_csv(tmp_path / "ways.csv")
    hospitals = rows["hospital_id"].nunique()
    assert len(rows) == (3 * len(samplers.WAYS) + 2) * hospitals  # tiers, ways; nobody attacks a look-up
    assert (rows.loc[rows["tier"] != "T3", "scans"] == 8 // hospitals).all()
    assert (rows["right"] <= rows["scans"]).all()
    clean, attacked = (rows[(rows["way"] == "none") & (rows["tier"] == tier)]["right"].sum() for tier in ("T0", "T2"))
    assert attacked <= clean
    again = CliRunner().invoke(samplers.main, options)
    assert again.output.splitlines() == first.output.splitlines()[-len(again.output.splitlines()) :]
    assert pd.read_csv(tmp_path / "ways.csv").equals(rows)
