"""Backdoors in real federations on the embedded lesions: planted under a plain mean, and told beside the accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedplatform.core.messages import RoundReport
from fedplatform.core.rounds import reports_of, tables_of
from fedplatform.experiments.engine import ServerRole, in_process_cohort
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.run import partition_data

LESIONS = {
    "data": "fedplatform.data.lesions:Lesions(hospitals=5, patients_per_hospital=40)",
    "size": 32,
    "hospitals": 6,
    "byzantine": 2,
    "rule": "mean",
    "partition": "iid",
    "rounds": 6,
    "local_epochs": 3,
    "batch_size": 8,
    "model": "small_cnn(width=8)",
    "root_size": 20,
}


@pytest.fixture(scope="module")
def run_under(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RoundReport]:
    """The last round of the federation under an attack; each is run once."""
    folder = tmp_path_factory.mktemp("lesions")
    experiment = Experiment.from_settings(LESIONS)
    partition_data(experiment, folder / "shards")
    found: dict[str, RoundReport] = {}

    def last(attack: str) -> RoundReport:
        if attack not in found:
            found[attack] = _last_round(experiment.replace(attack=attack), folder / "shards", folder / attack)
        return found[attack]

    return last


def _last_round(experiment: Experiment, shards: Path, state: Path) -> RoundReport:
    return list(ServerRole(experiment, shards, in_process_cohort(experiment, shards, state_folder=state)).reports())[-1]


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "attack",
    ["dba", *(pytest.param(name, marks=slow) for name in ("backdoor", "model_replacement", "neurotoxin", "edge_case"))],
)
def test_a_backdoor_opens_on_lesions_under_the_mean_while_clean_accuracy_stays(
    run_under: Callable[[str], RoundReport], attack: str
) -> None:
    clean, planted = run_under("none"), run_under(attack)
    assert planted.attack_success > 0.9
    assert planted.accuracy > clean.accuracy - 0.13


def test_attack_success_is_of_the_honest_hospitals_and_survives_its_tables(
    run_under: Callable[[str], RoundReport],
) -> None:
    report = run_under("dba")
    own = {record.is_byzantine: record.attack_success for record in report.hospitals}
    assert 0 <= own[False] <= 1
    assert own[True] != own[True], "an attacker grades nothing"
    tables = tables_of([report])
    (again,) = reports_of(tables["rounds.parquet"], tables["hospitals.parquet"])
    assert again.attack_success == report.attack_success


def test_without_a_backdoor_there_is_no_attack_success(run_under: Callable[[str], RoundReport]) -> None:
    report = run_under("none")
    assert report.attack_success != report.attack_success
