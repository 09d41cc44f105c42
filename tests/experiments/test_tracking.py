from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from fedplatform.core.messages import HospitalRecord, HospitalState, RoundReport
from fedplatform.experiments.tracking import ROUNDS_IN_A_BATCH, MlflowTracker

# MLflow's own database layer uses what SQLAlchemy will remove one day.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SETTINGS = {"data": "lesions", "rule": "median", "attack": "sign_flip", "seed": "0"}


def round_report(number: int, *, hospitals: int = 3, accuracy: float = 0.9) -> RoundReport:
    records = tuple(
        HospitalRecord(
            round_number=number,
            hospital_id=f"hospital-{index}",
            state=HospitalState.HOSTILE if index == 0 else HospitalState.REPORTED,
            reason="far from all others" if index == 0 else "",
            is_byzantine=index == 0,
            num_examples=100,
            norm=1.0 + index,
            cosine=0.5,
            weight=0.0 if index == 0 else 0.5,
            train_loss=0.3,
            train_seconds=2.0,
            accuracy=math.nan if index == 0 else 0.8 + number / 100,
            loss=math.nan if index == 0 else 0.4,
        )
        for index in range(hospitals)
    )
    return RoundReport(
        round_number=number,
        accuracy=accuracy,
        macro_f1=0.88,
        auc=math.nan,
        loss=0.31,
        validation_accuracy=0.87,
        train_seconds=6.0,
        aggregate_seconds=0.1,
        evaluate_seconds=1.0,
        hospitals=records,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs whose database is created once, because MLflow needs seconds for it."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def no_server_from_outside(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def client_of(folder: Path):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def runs_of(folder: Path, experiment_name: str):
    client = client_of(folder)
    experiment = client.get_experiment_by_name(experiment_name)
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    return client, parent, children


def test_the_database_beside_the_run_holds_every_figure_of_it(folder):
    rounds = ROUNDS_IN_A_BATCH + 3
    page = folder / "report.html"
    page.write_text("<!doctype html><title>demo</title>")
    with MlflowTracker.start(experiment_name="whole", run_name="demo", settings=SETTINGS, folder=folder) as tracker:
        for number in range(1, rounds + 1):
            tracker.log_round(round_report(number, accuracy=0.5 + number / 100))
        tracker.log_artifact(page)

    client, parent, children = runs_of(folder, "whole")
    assert parent.info.run_name == "demo"
    assert parent.info.status == "FINISHED"
    assert parent.data.params == SETTINGS
    history = client.get_metric_history(parent.info.run_id, "accuracy")
    assert [(point.step, point.value) for point in history] == [(n, 0.5 + n / 100) for n in range(1, rounds + 1)]
    assert parent.data.metrics["hospitals_hostile"] == 1
    assert "auc" not in parent.data.metrics
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["report.html"]
    assert parent.info.artifact_uri.startswith((folder / "mlflow-artifacts").as_uri())

    assert set(children) == {"hospital-0", "hospital-1", "hospital-2"}
    attacker, honest = children["hospital-0"], children["hospital-1"]
    assert (attacker.data.tags["is_byzantine"], attacker.data.tags["last_state"]) == ("true", "hostile")
    assert (honest.data.tags["is_byzantine"], honest.data.tags["last_state"]) == ("false", "reported")
    assert "accuracy" not in attacker.data.metrics
    weights = client.get_metric_history(honest.info.run_id, "weight")
    assert [point.step for point in weights] == list(range(1, rounds + 1))
    assert honest.data.metrics == {
        "norm": 2.0,
        "cosine": 0.5,
        "weight": 0.5,
        "accuracy": 0.8 + rounds / 100,
        "loss": 0.4,
        "train_seconds": 2.0,
    }
    assert {run.info.status for run in children.values()} == {"FINISHED"}


def test_trust_reputation_and_fingerprint_are_metrics_of_every_hospital_that_was_scored(folder):
    figures = {
        "trust": 0.2,
        "reputation": 0.35,
        "reconstruction_error": 4.5,
        "root_cosine": -0.4,
        "peer_cosine": 0.1,
        "norm": 31.0,
        "sign_agreement": 0.47,
        "shapley": -0.02,
    }
    rounds = ROUNDS_IN_A_BATCH + 2
    with MlflowTracker.start(experiment_name="scored", run_name="demo", settings=SETTINGS, folder=folder) as tracker:
        for number in range(1, rounds + 1):
            report = round_report(number)
            scored = replace(report.hospitals[0], **{**figures, "trust": 1 / number}, z_norm=9.0)
            tracker.log_round(replace(report, hospitals=(scored, *report.hospitals[1:])))

    client, _, children = runs_of(folder, "scored")
    attacker, honest = children["hospital-0"], children["hospital-1"]
    assert {name: attacker.data.metrics[name] for name in figures} == {**figures, "trust": 1 / rounds}
    trust = client.get_metric_history(attacker.info.run_id, "trust")
    assert [(point.step, point.value) for point in trust] == [(n, 1 / n) for n in range(1, rounds + 1)]
    assert set(figures) & set(honest.data.metrics) == {"norm"}


def test_a_run_that_raises_is_marked_failed_and_its_error_goes_on(folder):
    start = MlflowTracker.start(experiment_name="failing", run_name="demo", settings=SETTINGS, folder=folder)

    def train() -> None:
        with start as tracker:
            tracker.log_round(round_report(1))
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        train()

    _, parent, children = runs_of(folder, "failing")
    assert parent.info.status == "FAILED"
    assert parent.data.metrics["accuracy"] == 0.9
    assert {run.info.status for run in children.values()} == {"FAILED"}


def test_a_run_that_goes_on_for_more_rounds_says_so_by_a_tag(folder):
    words = {"experiment_name": "longer", "run_name": "demo", "folder": folder}
    with MlflowTracker.start(settings={**SETTINGS, "rounds": "4"}, **words) as tracker:
        tracker.log_round(round_report(1))
    with MlflowTracker.start(settings={**SETTINGS, "rounds": "9"}, run_id=tracker.run_id, **words):
        pass

    _, parent, _ = runs_of(folder, "longer")
    assert (parent.data.params["rounds"], parent.data.tags["rounds"]) == ("4", "9")
    assert not set(SETTINGS) - {"rounds"} & set(parent.data.tags)


def test_the_environment_names_the_database_where_the_caller_does_not(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    with MlflowTracker.start(experiment_name="named", run_name="demo", settings=SETTINGS, folder=tmp_path) as tracker:
        tracker.log_round(round_report(1))

    assert list(tmp_path.iterdir()) == []
    _, parent, _ = runs_of(folder, "named")
    assert parent.info.status == "FINISHED"


def test_a_server_out_of_reach_costs_one_warning_and_no_training(folder, caplog):
    with (
        caplog.at_level(logging.WARNING, logger="fedplatform.experiments.tracking"),
        MlflowTracker.start(
            experiment_name="far",
            run_name="demo",
            settings=SETTINGS,
            folder=folder,
            tracking_uri="http://127.0.0.1:9",  # the discard port: nobody listens
        ) as tracker,
    ):
        for number in range(1, 4):
            tracker.log_round(round_report(number))

    (message,) = [record.getMessage() for record in caplog.records if record.name == "fedplatform.experiments.tracking"]
    assert message.startswith("MLflow could not start, the run goes on untracked: MlflowException")
    assert "\n" not in message


def test_a_database_lost_in_mid_run_costs_one_warning_and_no_training(folder, caplog):
    with (
        caplog.at_level(logging.WARNING, logger="fedplatform.experiments.tracking"),
        MlflowTracker.start(experiment_name="lost", run_name="demo", settings=SETTINGS, folder=folder) as tracker,
    ):
        tracker.log_round(round_report(1))
        client, parent, _ = runs_of(folder, "lost")
        client.delete_run(parent.info.run_id)  # MLflow takes no figures for a deleted run
        for number in range(2, 5):
            tracker.log_round(round_report(number))

    (message,) = [record.getMessage() for record in caplog.records if record.name == "fedplatform.experiments.tracking"]
    assert message.startswith("MLflow could not log a round, the run goes on untracked")


@pytest.mark.slow
def test_processes_that_start_at_once_in_one_new_folder_are_all_tracked(tmp_path):
    start = (
        "import sys, pathlib; from fedplatform.experiments.tracking import MlflowTracker; "
        "tracker = MlflowTracker.start(experiment_name='x', run_name=sys.argv[1], settings={}, "
        "folder=pathlib.Path(sys.argv[2])); "
        "tracker.__exit__(None, None, None); sys.exit(tracker._has_failed)"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": ""}
    begun = [
        subprocess.Popen([sys.executable, "-c", start, f"run-{number}", str(tmp_path)], env=environment)
        for number in range(3)
    ]
    assert [process.wait(300) for process in begun] == [0, 0, 0]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("x")
    assert {run.info.run_name for run in client.search_runs([experiment.experiment_id])} == {"run-0", "run-1", "run-2"}
