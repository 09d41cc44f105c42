"""The command line as its user meets it: what it prints, what it leaves, and how it says no."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file

from fedplatform.cli import main
from fedplatform.cli.display import RoundTable
from fedplatform.cli.options import words
from fedplatform.core.messages import RoundReport

QUICK = [
    "--size", "32", "--hospitals", "5", "--byzantine", "1", "--rounds", "2", "--model", "small_cnn(width=4)",
    "--root-size", "20", "--partition", "iid", "--engine", "local",
]  # fmt: skip


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the console command in this process and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["fedplatform", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class, 60 unlike pictures each: one class has a bright square."""
    folder = tmp_path_factory.mktemp("scans") / "mine"
    generator = np.random.default_rng(0)
    for label in ("clear", "square"):
        (folder / label).mkdir(parents=True)
        for number in range(60):
            picture = generator.integers(0, 120, (32, 32), dtype=np.uint8)
            if label == "square":
                row, column = generator.integers(2, 22, 2)
                picture[row : row + 8, column : column + 8] = 255
            Image.fromarray(picture).save(folder / label / f"{number}.png")
    return folder


def test_a_run_leaves_all_that_it_promises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, scans: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    status = call(
        monkeypatch, "run", "lesions", *QUICK, "--data", scans, "--attack", "sign_flip", "--rule", "multi_krum",
        "--runs", tmp_path, "--name", "mine",
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert status == 0
    assert "round 2/2" in shown
    assert "left 0:00" in shown
    folder = tmp_path / "mine"
    rounds = pd.read_parquet(folder / "rounds.parquet")
    hospitals = pd.read_parquet(folder / "hospitals.parquet")
    assert {"accuracy", "macro_f1", "auc", "loss", "train_seconds", "aggregate_seconds"} <= set(rounds)
    assert len(rounds) == 2
    assert {"state", "norm", "cosine", "weight", "is_byzantine", "reason", "accuracy"} <= set(hospitals)
    assert len(hospitals) == 10
    assert hospitals.groupby("round_number")["is_byzantine"].sum().tolist() == [1, 1]
    assert all(np.isfinite(value).all() for value in load_file(folder / "global.safetensors").values())
    assert len(list((folder / "hospitals").glob("*.safetensors"))) == 5
    assert "<html" in (folder / "report.html").read_text()
    assert (tmp_path / "mlflow.db").exists()
    assert not list(folder.glob("**/*.partial*"))


def test_a_run_that_is_stopped_says_how_it_goes_on_and_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, scans: Path
) -> None:
    command = ["run", "lesions", *QUICK, "--data", scans, "--runs", tmp_path, "--name", "mine"]
    with monkeypatch.context() as patch:
        patch.setattr(RoundTable, "round_finished", stop_by_hand)
        assert call(patch, *command) == 130
    said = capsys.readouterr().err
    assert f"finished rounds are kept; go on with: fedplatform run --resume mine --runs {tmp_path}" in said
    again = ["run", "--resume", "mine", "--runs", tmp_path, "--engine", "local"]
    assert call(monkeypatch, *again, "--seed", "7") == 2
    assert "a resumed run keeps its name and settings, all but --rounds" in capsys.readouterr().err
    assert call(monkeypatch, *again) == 0
    shown = capsys.readouterr().out
    assert "going on after round 1/2" in shown
    assert "round 2/2" in shown
    assert call(monkeypatch, *again) == 1
    assert "run 'mine' is finished after 2 rounds; --rounds N goes on until round N" in capsys.readouterr().err
    assert call(monkeypatch, *again, "--rounds", "3") == 0
    assert "round 3/3" in capsys.readouterr().out
    assert call(monkeypatch, *again[:2], "mime", *again[3:]) == 1
    assert "did you mean 'mine'?" in capsys.readouterr().err
    assert call(monkeypatch, "run") == 2
    assert "give DATA, a RECIPE or --resume NAME" in capsys.readouterr().err


def stop_by_hand(table: RoundTable, reports: Sequence[RoundReport]) -> None:
    raise KeyboardInterrupt


def test_the_resolved_file_runs_the_same_experiment_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scans: Path
) -> None:
    call(monkeypatch, "run", "lesions", *QUICK, "--data", scans, "--runs", tmp_path, "--name", "first")
    again = tmp_path / "first" / "experiment.yaml"
    status = call(monkeypatch, "run", again, "--engine", "local", "--runs", tmp_path, "--name", "second")
    assert status == 0
    weights = [(tmp_path / name / "global.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]
    assert yaml.safe_load(again.read_text()) == yaml.safe_load((tmp_path / "second/experiment.yaml").read_text())


def test_each_shard_holds_its_own_hospitals_scans_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, scans: Path
) -> None:
    folder = tmp_path / "shards"
    assert call(monkeypatch, "data", "partition", "lesions", folder, *QUICK[:-2], "--data", scans) == 0
    rows = [set(pq.read_table(file)["row"].to_pylist()) for file in sorted(folder.glob("*.parquet"))]
    assert len(rows) == 6
    assert sum(map(len, rows)) == len(set.union(*rows)) == 120
    assert "hospital-00.parquet" in capsys.readouterr().out


def test_data_list_names_every_data_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "data", "list") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("lesions", "br35h", "alzheimer", "lc25000", "mnist", "cifar10"))


def test_the_audit_says_whether_a_random_split_overestimates_accuracy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], real_data: Path
) -> None:
    assert call(monkeypatch, "data", "audit", "br35h", "--data-folder", real_data) == 0
    shown = capsys.readouterr().out
    assert "339 given" in shown
    assert "a random split overestimates accuracy" in shown


def test_the_audit_takes_patients_from_file_names_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    for label in ("lesion", "none"):
        (tmp_path / label).mkdir()
        for patient in range(8):
            for piece in range(3):
                pixels = draw.integers(0, 255, (16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / label / f"patient{label[0]}{patient}_{piece}.png")
    for given, groups in (((), "16 given"), (("--patients", r"^patient[ln](\d)"), "8 given")):
        assert call(monkeypatch, "data", "audit", tmp_path, *given) == 0
        shown = capsys.readouterr().out
        assert groups in shown
        assert ("found in file names: 16 patients of 48 files" in shown) == (not given)
    assert call(monkeypatch, "data", "audit", tmp_path, "--patients", "none") == 0
    assert "none given" in capsys.readouterr().out


def test_a_comparison_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, scans: Path
) -> None:
    command = ["compare", "lesions", *QUICK, "--data", scans, "--runs", tmp_path, "--name", "table", "--rounds", "1"]
    assert call(monkeypatch, *command, "--rules", "mean", "--attacks", "none,sign_flip") == 0
    assert call(monkeypatch, *command, "--rules", "mean,nnm+median", "--attacks", "none,sign_flip") == 0
    results = pd.read_csv(tmp_path / "table" / "results.csv")
    assert list(results) == [
        "dataset", "split", "rule", "attack", "hospitals", "byzantine", "rounds", "seed", "accuracy", "macro_f1", "auc",
        "attack_success",
    ]  # fmt: skip
    assert results["rule"].value_counts().to_dict() == {
        "mean": 2, "nnm(f=1)+median": 2, "nearest_neighbour": 1, "central": 1,
    }  # fmt: skip
    assert "of 6" in capsys.readouterr().out
    assert (tmp_path / "table" / "comparison.html").exists()
    assert call(monkeypatch, *command, "--rules", "mean", "--momentum", "0.5") == 1
    assert "comparison.yaml was begun with momentum=0.9, got 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["run"],
        ["compare"],
        ["data"],
        ["data", "list"],
        ["data", "audit"],
        ["data", "partition"],
        ["data", "statistics"],
        ["report"],
        ["cross-site"],
        ["withdraw"],
        ["bench"],
        ["bench", "trust"],
        ["bench", "defence"],
        ["defend"],
        ["evaluate"],
        ["certify"],
    ],
)
def test_help_of_every_command_teaches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert call(monkeypatch, *command, "--help") == 0
    shown = capsys.readouterr().out
    assert "Usage: fedplatform" in shown
    assert len(shown.splitlines()) > 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rn"], "no command 'rn'; did you mean 'run'?"),
        (["data", "adit"], "no command 'adit'; did you mean 'audit'?"),
        (["run", "lesions", "--ruel", "mean"], "no option --ruel; did you mean '--rule'?"),
        (["run"], "give DATA, a RECIPE or --resume NAME"),
        (["run", "lesions", "--rounds", "many"], "'many' is not a valid integer"),
        (["defned", "runs/x"], "no command 'defned'; did you mean 'defend'?"),
        (["evaluate"], "Missing argument"),
        (["evaluate", "runs/x", "--epsilons", "0.015,8/0"], "numbers such as 0.015 or 8/255, got '0.015,8/0'"),
        (["evaluate", "runs/x", "--epsilon", "small"], "numbers such as 0.015 or 8/255, got 'small'"),
        (["evaluate", "runs/x", "--steps", "0"], "0 is not in the range x>=1"),
        (["certify", "runs/x", "--sigmas", "much"], "numbers such as 0.015 or 8/255, got 'much'"),
        (["defend", "runs/x", "--depth", "3"], "no option --depth"),
        (["bench", "defence", "--dataset", "lesions", "--seeds", "zero"], "seeds are whole numbers, got 'zero'"),
    ],
)
def test_a_mistyped_word_costs_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert call(monkeypatch, *arguments) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runs: Path, *options: object) -> str:
    """Run something that cannot be done; nothing may be left, and one line says why."""
    before = sorted(runs.rglob("*")) if runs.is_dir() else []
    status = call(monkeypatch, "run", "lesions", *QUICK, "--runs", runs, *options)
    complaint = capsys.readouterr().err
    assert status == 1
    assert complaint.startswith("fedplatform: ")
    assert complaint.count("\n") == 1
    assert (sorted(runs.rglob("*")) if runs.is_dir() else []) == before
    return complaint


def test_an_empty_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs").mkdir()
    assert "empty" in fails(monkeypatch, capsys, tmp_path / "runs", "--data", tmp_path / "empty")


def test_a_corrupt_picture_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, scans: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(scans, folder)
    (folder / "clear" / "7.png").write_bytes(b"\x89PNG no picture")
    (tmp_path / "runs").mkdir()
    assert "7.png" in fails(monkeypatch, capsys, tmp_path / "runs", "--data", folder)


def test_one_class_only_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, scans: Path
) -> None:
    folder = tmp_path / "alone"
    shutil.copytree(scans / "clear", folder / "clear")
    (tmp_path / "runs").mkdir()
    assert "class" in fails(monkeypatch, capsys, tmp_path / "runs", "--data", folder)


def test_more_attackers_than_hospitals_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "7 Byzantine of 5 hospitals" in fails(monkeypatch, capsys, tmp_path, "--byzantine", "7")


def test_an_f_too_large_for_the_rule_is_refused_with_its_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "n >= 2f + 3, got n=5, f=2" in fails(monkeypatch, capsys, tmp_path, "--rule", "krum", "--f", "2")


def test_a_run_name_that_exists_is_refused_and_the_run_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "precious").write_text("kept")
    assert "run 'taken' exists" in fails(monkeypatch, capsys, tmp_path, "--name", "taken")
    assert (tmp_path / "taken" / "precious").read_text() == "kept"


def test_a_run_name_cannot_leave_the_folder_of_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "plain folder name" in fails(monkeypatch, capsys, tmp_path, "--name", "../outside")


def test_a_place_that_cannot_be_written_to_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], read_only: Path
) -> None:
    assert "cannot make run folder" in fails(monkeypatch, capsys, read_only, "--name", "x")


def test_a_full_disk_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, scans: Path
) -> None:
    """A limit on the size of a file stands for the full disk: writing past it fails the same way, with an OSError."""
    import resource
    import signal

    runs = tmp_path / "runs"
    runs.mkdir()
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        complaint = fails(monkeypatch, capsys, runs, "--data", scans)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "File too large" in complaint or "cannot" in complaint


def test_a_folder_that_is_no_run_has_no_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(monkeypatch, "report", tmp_path) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["defend", "RUN", "--engine", "local", "--most-depth", "300"], "t_max=260 learns no depth of 300"),
        (["defend", "RUN", "--engine", "local", "--least-depth", "250"], "the least depth is at most the most"),
        (["defend", "RUN", "--engine", "local", "--sampler", "ddimm"], "did you mean 'ddim'?"),
        (["defend", "RUN", "--engine", "local", "--purifier", "small_cnn"], "cannot be the purifier"),
        (["defend", "RUN", "--engine", "local", "--copies", "0"], "copies: Input should be greater than or equal to 1"),
        (["defend", "NOWHERE", "--engine", "local"], "holds no finished run"),
        (["evaluate", "NOWHERE"], "holds no finished run"),
        (["evaluate", "RUN"], "has no trained defence; 'fedplatform defend"),
        (["evaluate", "RUN", "--tiers", "T0,T6"], "no tier is called 'T6'"),
        (["evaluate", "RUN", "--defences", "ful"], "no defence is called 'ful'; did you mean 'full'?"),
        (["evaluate", "RUN", "--epsilons", "8"], "epsilons are in pixels of [0, 1], as 8/255"),
        (["evaluate", "RUN", "--epsilons", ""], "epsilons are in pixels of [0, 1], as 8/255"),
        (["certify", "RUN"], "has no trained defence; 'fedplatform defend"),
        (["bench", "defence", "--dataset", "brain35h", "--runs", "NOWHERE"], "did you mean 'br35h'?"),
    ],
)
def test_a_defence_that_cannot_be_had_costs_one_line_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    undefended: Path,
    tmp_path: Path,
    arguments: list[str],
    said: str,
) -> None:
    before = sorted(undefended.rglob("*"))
    places = {"RUN": undefended, "NOWHERE": tmp_path / "nowhere"}
    assert call(monkeypatch, *(places.get(word, word) for word in arguments)) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("fedplatform: ")
    assert said in complaint
    assert complaint.count("\n") == 1
    assert sorted(undefended.rglob("*")) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sigmas", ["", "0", "9"])
def test_noise_that_no_purifier_has_learned_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], defended: Path, sigmas: str
) -> None:
    assert call(monkeypatch, "certify", defended, "--sigmas", sigmas) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (defended / "certificates.parquet").exists()


def test_an_epsilon_may_be_written_in_grey_levels() -> None:
    from fedplatform.cli import fedplatform

    parent = fedplatform.make_context("fedplatform", ["evaluate", "runs/x"])
    given = fedplatform.commands["evaluate"].make_context("evaluate", ["runs/x"], parent=parent).params
    assert given["epsilons"] == (0.015, 8 / 255)
    words = ["runs/x", "--epsilon", "2/255, 0.1"]
    assert fedplatform.commands["evaluate"].make_context("evaluate", words, parent=parent).params["epsilons"] == (
        2 / 255,
        0.1,
    )


def test_commas_inside_brackets_do_not_cut_a_list() -> None:
    assert words("mean, dnc(f=1, iterations=2),krum") == ("mean", "dnc(f=1, iterations=2)", "krum")


def test_options_are_understood_with_dashes_and_with_underscores() -> None:
    from fedplatform.cli import fedplatform

    parent = fedplatform.make_context("fedplatform", ["run", "lesions"])
    words = ["lesions", "--split", "group_safe", "--local_epochs", "3", "--batch-size", "4"]
    given = fedplatform.commands["run"].make_context("run", words, parent=parent).params
    assert (given["split"], given["local_epochs"], given["batch_size"]) == ("group_safe", 3, 4)
