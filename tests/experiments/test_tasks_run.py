"""Findings and grades from data to report: what is drawn is found, by every rule and algorithm, and resumed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from shapes import FINDINGS, SIZE, findings, graded, scans, write_chest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

import fedplatform as fp
from fedplatform.cli import main
from fedplatform.core.messages import RoundReport
from fedplatform.core.tasks import mean_loss
from fedplatform.data.shards import Manifest, Shard
from fedplatform.data.splits import Role
from fedplatform.experiments.baselines import NEAREST_NEIGHBOUR, nearest_neighbour
from fedplatform.experiments.callbacks import EachRound
from fedplatform.experiments.engine import InProcessEngine, ServerRole, in_process_cohort
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.run import partition_data, resume, run
from fedplatform.experiments.run_folder import RunFolder
from fedplatform.serving.export import export

FEW = {
    "size": SIZE,
    "hospitals": 4,
    "byzantine": 0,
    "rule": "mean",
    "root_size": 20,
    "rounds": 1,
    "model": "small_cnn(width=4)",
    "algorithm": "fedavg",
    "batch_size": 16,
}


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An npz file of 800 scans with three findings."""
    return write_chest(tmp_path_factory.mktemp("chest") / "chest.npz", findings(800))


@pytest.fixture(scope="module")
def learned(chest: Path, tmp_path_factory: pytest.TempPathFactory) -> fp.Result:
    """A run of a few rounds on it. Nobody writes here."""
    return fp.run(
        **{**FEW, "rounds": 5, "local_epochs": 4, "model": "small_cnn(width=8)"},
        data=str(chest),
        task="multilabel",
        folder=tmp_path_factory.mktemp("runs") / "chest",
    )


# What is learned


def test_a_few_rounds_find_every_shape_and_each_auc_is_scikit_learns(learned: fp.Result) -> None:
    last = learned.rounds.iloc[-1]
    table = pd.read_parquet(learned.path / "predictions.parquet")
    labels, scores = (np.stack(table[name].to_list()) for name in ("label", "probabilities"))
    by_hand = [roc_auc_score(labels[:, number], scores[:, number]) for number in range(3)]
    assert list(last["label_auc"]) == pytest.approx(by_hand)
    assert last["auc"] == pytest.approx(np.mean(by_hand))
    assert min(by_hand) > 0.9
    assert last["loss"] == pytest.approx(mean_loss(scores, labels), rel=1e-5)
    assert last["accuracy"] == pytest.approx(((scores > 0.5) == labels).mean())


def test_findings_have_a_table_by_site(learned: fp.Result) -> None:
    table = learned.findings
    assert table.index.get_level_values("finding").unique().tolist() == list(FINDINGS)
    pooled = table.loc["all sites"]
    assert pooled["auc"].to_numpy() == pytest.approx(np.array(learned.rounds.iloc[-1]["label_auc"]))
    assert (pooled["auc_low"] <= pooled["auc"]).all()
    assert (pooled["auc_low"] < 1).any()
    assert learned.sites.loc["all sites", "auc"] == pytest.approx(pooled["auc"].mean())
    shards = Manifest.load(learned.path / "shards").hospitals
    tests = [Shard.open(learned.path / "shards" / shard.file).labels(Role.TEST) for shard in shards]
    assert pooled["scans"].tolist() == np.concatenate(tests).sum(axis=0).tolist()


def test_the_page_shows_every_finding_and_no_confusion_of_classes(learned: fp.Result) -> None:
    page = learned.report()
    assert 'id="findings"' in page
    assert 'id="confusion"' not in page
    assert "each of them is a question by itself" in page
    assert all(f'<td class="left">{name}</td>' in page for name in FINDINGS)
    assert "In no mean over all scans" not in page
    assert "true: " in page


def test_scans_of_a_result_come_with_their_findings(learned: fp.Result) -> None:
    images, labels = learned.scans("hospital-00")
    assert labels.shape == (len(images), 3)
    assert set(labels.unique().tolist()) <= {0, 1}


def test_an_exported_network_answers_logits_whose_sigmoid_is_the_probability(
    learned: fp.Result, tmp_path: Path
) -> None:
    export(learned.path, tmp_path / "torch", form="torch")
    export(learned.path, tmp_path / "onnx", form="onnx")
    for form in ("torch", "onnx"):
        card = json.loads((tmp_path / form / "model.json").read_text())
        assert "sigmoid" in card["answer"]
        assert (card["task"], card["classes"]) == ("multilabel", list(FINDINGS))
    images, _ = learned.scans("hospital-00")
    network = torch.export.load(tmp_path / "torch" / "model.pt2").module()
    table = pd.read_parquet(learned.path / "predictions.parquet")
    wanted = np.stack(table[table["hospital"] == "hospital-00"]["probabilities"].to_list())
    assert network(images).sigmoid().detach().numpy() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("command", ["defend", "evaluate", "certify", "publish", "serve"])
def test_the_scan_defence_is_refused_in_one_sentence(
    learned: fp.Result, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fedplatform", command, str(learned.path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert "this run has task multilabel with objective binary_cross_entropy" in " ".join(said.split())
    assert not (learned.path / "defence").exists()


def test_looking_up_the_nearest_scan_is_judged_by_finding_too(chest: Path, tmp_path: Path) -> None:
    table = fp.compare(**FEW, data=str(chest), task="multilabel", rules=["mean"], folder=tmp_path / "table")
    found = nearest_neighbour(tmp_path / "table" / "shards" / "seed-0")
    assert len(found.label_auc) == 3
    assert table.loc[NEAREST_NEIGHBOUR, "none"] == pytest.approx(found.accuracy)


# Every part of the federation


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path]:
    """A small experiment, and its shards."""
    labels = findings(200, seed=4)
    mine = fp.from_arrays(scans(labels, seed=4), labels, classes=FINDINGS, groups=np.arange(200) // 2)
    experiment = Experiment.from_settings({**FEW, "data": mine, "task": "multilabel"})
    shards = tmp_path_factory.mktemp("dealt") / "shards"
    partition_data(experiment, shards)
    return experiment, shards


def trained(experiment: Experiment, shards: Path, folder: Path) -> tuple[RoundReport, ...]:
    cohort = in_process_cohort(experiment, shards, state_folder=folder)
    return tuple(ServerRole(experiment, shards, cohort).reports())


ATTACKS = ["label_flip", "backdoor(target=2)", "sign_flip", "alie", "mimic", "fingerprint_aware"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_kind_of_attack_meets_findings(dealt: tuple[Experiment, Path], tmp_path: Path, attack: str) -> None:
    experiment, shards = dealt
    attacked = experiment.replace(byzantine=1, attack=attack, rule="trust")
    (report,) = trained(attacked, shards, tmp_path)
    assert np.isfinite([report.loss, report.auc]).all()
    assert sum(record.is_byzantine for record in report.hospitals) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "fltrust"},
        {"rule": "hybrid+trust"},
        {"rule": "nnm+median", "f": 1},
        {"privacy": "grouped(size=2)"},
        {"algorithm": "fedbn_p", "sampling": "groups"},
        {"algorithm": "apfl", "sampling": "classes"},
        {"algorithm": "scaffold", "momentum": 0.0},
        {"algorithm": "fedrep", "objective": "binary_cross_entropy(class_weights=balanced)"},
        {
            "objective": "generative",
            "model": "masked_autoencoder(width=16, depth=1, decoder_width=16, decoder_depth=1)",
        },
        {
            "augmentation": "mirror",
            "ema": 0.5,
            "transport": "half",
            "server_optimiser": "fedadam",
        },
    ],
    ids=lambda settings: ",".join(map(str, settings.values())),
)
def test_every_part_of_a_federation_learns_findings(
    dealt: tuple[Experiment, Path], tmp_path: Path, settings: dict[str, object]
) -> None:
    experiment, shards = dealt
    reports = trained(experiment.replace(**{"rounds": 2, **settings}), shards, tmp_path)
    assert np.isfinite(reports[-1].loss)
    assert reports[-1].had_effect
    assert all(record.weight > 0 for record in reports[-1].hospitals if record.state == "reported")


def test_flipped_labels_of_half_of_the_hospitals_break_the_plain_mean(
    dealt: tuple[Experiment, Path], tmp_path: Path
) -> None:
    experiment, shards = dealt
    longer = experiment.replace(rounds=4, local_epochs=4)
    honest = trained(longer, shards, tmp_path / "honest")[-1]
    flipped = trained(longer.replace(byzantine=2, attack="label_flip"), shards, tmp_path / "flipped")[-1]
    assert honest.auc > flipped.auc + 0.1


class PulledPlugError(Exception):
    """The end of a process that nobody asked for."""


def pull_the_plug(report: RoundReport) -> None:
    if report.round_number == 1:
        raise PulledPlugError


@pytest.mark.parametrize("settings", [{"task": "multilabel"}, {"task": "ordinal"}], ids=["findings", "grades"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, settings: dict[str, object]) -> None:
    labels = findings(160) if settings["task"] == "multilabel" else np.arange(160) % 3
    pixels = scans(findings(160))
    file = tmp_path / "scans.npz"
    np.savez(file, x_train=pixels[:120], y_train=labels[:120], x_test=pixels[120:], y_test=labels[120:])
    experiment = Experiment.from_settings(
        {**FEW, **settings, "data": str(file), "rounds": 3, "rule": "trust", "algorithm": "fedbn_p"}
    )
    engine = InProcessEngine()
    run(experiment, engine=engine, runs=tmp_path, name="unbroken")
    with pytest.raises(PulledPlugError):
        run(experiment, engine=engine, runs=tmp_path, name="broken", callbacks=[EachRound(pull_the_plug)])
    resume(RunFolder.reopen(tmp_path, "broken"), engine=engine)
    tables = [pd.read_parquet(tmp_path / name / "rounds.parquet") for name in ("broken", "unbroken")]
    pd.testing.assert_frame_equal(*(table.drop(columns=[c for c in table if "seconds" in c]) for table in tables))
    kept = [(tmp_path / name / "global.safetensors").read_bytes() for name in ("broken", "unbroken")]
    assert kept[0] == kept[1]


def test_a_run_on_shards_of_another_task_is_refused_before_it_begins(
    dealt: tuple[Experiment, Path], tmp_path: Path
) -> None:
    experiment, shards = dealt
    other = Experiment.from_settings({**FEW, "data": experiment.data})
    with pytest.raises(ExperimentError, match="task multiclass takes one class a scan: --task multilabel"):
        run(other, engine=InProcessEngine(), runs=tmp_path, name="other", shards=shards)
    assert not (tmp_path / "other").exists()


def test_findings_that_no_test_scan_has_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = findings(120)
    labels[:, 1] = 0
    labels[0, 1] = 1  # one scan, which is for training
    mine = fp.from_arrays(scans(labels), labels, classes=FINDINGS, groups=np.arange(120))
    with caplog.at_level(logging.WARNING):
        result = fp.run(**FEW, data=mine, folder=tmp_path / "run")
    assert result.experiment.task == "multilabel", "scans in memory bring their task"
    assert "no test scan has bar: left out" in caplog.text
    assert np.isfinite(result.rounds.iloc[-1][["auc", "accuracy"]].to_list()).all()
    assert "In no mean over all scans, because all or none of them have it: bar." in result.report()
    assert np.isnan(result.findings.loc[("all sites", "bar"), "auc"])


def test_findings_in_a_file_of_ones_own_are_known_as_such_without_a_word(
    chest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", chest, "--rounds", 1, "--engine", "local", "--runs", tmp_path, "--model", "small_cnn(width=4)"]
    monkeypatch.setattr("sys.argv", ["fedplatform", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    said = " ".join(capsys.readouterr().out.split())
    assert "multilabel │ labels say yes or no of each" in said
    (settings,) = tmp_path.glob("*/experiment.yaml")
    assert "task: multilabel" in settings.read_text()


# Grades


@pytest.fixture(scope="module")
def grades() -> object:
    pixels, labels = graded(480)
    return fp.from_arrays(pixels, labels, groups=np.arange(480), classes=["none", "mild", "moderate", "severe"])


@pytest.mark.parametrize("objective", ["ordinal", pytest.param("cross_entropy", marks=pytest.mark.slow)])
def test_grades_are_learned_and_judged_by_kappa_under_either_objective(
    grades: object, tmp_path: Path, objective: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = fp.run(
            **{**FEW, "rounds": 4, "local_epochs": 4, "model": "small_cnn(width=8)"},
            data=grades,
            task="ordinal",
            objective=objective,
            folder=tmp_path / "run",
        )
    assert "lowest first: none, mild, moderate, severe" in caplog.text
    table = pd.read_parquet(result.path / "predictions.parquet")
    scores = np.stack(table["probabilities"].to_list())
    assert scores.sum(axis=1) == pytest.approx(np.ones(len(scores)), abs=1e-5)
    last, answers = result.rounds.iloc[-1], scores.argmax(axis=1)
    assert last["quadratic_kappa"] == pytest.approx(cohen_kappa_score(table["label"], answers, weights="quadratic"))
    assert last["mean_absolute_error"] == pytest.approx(np.abs(table["label"] - answers).mean())
    assert last["quadratic_kappa"] > 0.8
    page = result.report()
    assert "Quadratic weighted kappa" in page
    assert "Mean absolute error, in grades" in page


def test_a_page_names_the_classes_where_the_server_keeps_no_scans(grades: object, tmp_path: Path) -> None:
    result = fp.run(**{**FEW, "root_size": 0}, data=grades, task="ordinal", folder=tmp_path / "run")
    assert "none / mild / moderate / severe" in result.report()


def test_classes_without_order_have_no_kappa(grades: object, tmp_path: Path) -> None:
    result = fp.run(**FEW, data=grades, folder=tmp_path / "run")
    assert result.rounds[["quadratic_kappa", "mean_absolute_error"]].isna().all(axis=None)
    assert "kappa" not in result.report()
    with pytest.raises(ExperimentError, match="a scan has one class under task multiclass"):
        _ = result.findings


def test_a_network_of_grades_starts_from_an_earlier_one_is_exported_and_has_no_defence(
    grades: object, tmp_path: Path
) -> None:
    first = fp.run(**FEW, data=grades, task="ordinal", folder=tmp_path / "first")
    again = fp.run(**FEW, data=grades, task="ordinal", weights=str(first.path), folder=tmp_path / "again")
    began, ended = load_file(again.path / "start.safetensors"), load_file(first.path / "global.safetensors")
    assert {name: value.tobytes() for name, value in began.items()} == {
        name.removeprefix("body."): value.tobytes() for name, value in ended.items()
    }
    export(again.path, tmp_path / "onnx", form="onnx")
    assert "softmax" in json.loads((tmp_path / "onnx" / "model.json").read_text())["answer"]
    with pytest.raises(ExperimentError, match="task ordinal with objective ordinal"):
        fp.defend(first, preset="smoke")
