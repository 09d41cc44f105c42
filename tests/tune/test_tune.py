"""Searches on a real Ray Tune: nothing is lost, nothing is done twice, and what a study leaves can be run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hills import Hill, Race
from mlflow.tracking import MlflowClient

from fedplatform.data.splits import Role
from fedplatform.defence.settings import DefenceSettings
from fedplatform.experiments.experiment import Experiment, ExperimentError, load_settings
from tune.duel import Duel
from tune.evasion import Evasion
from tune.phase import Budget
from tune.poisoning import Poisoning
from tune.purification import Purification
from tune.result import conclude
from tune.runner import Observer, Resources, run
from tune.studies import describe_study, parse_study
from tune.study import Study
from tune.tracker import StudyTracker
from tune.trial import Ledger, State, Trial
from tune.trust import Trust

pytestmark = [
    pytest.mark.usefixtures("ray_here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # inside Ray Tune's and MLflow's own code
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ROOT = Path(__file__).parents[2]
AXES_IN_WORDS = ("strength", "Byzantine hospitals")
ONE = Resources(jobs=1)  # a second process would cost more than it brings
SMALL = {
    "data": "fedplatform.data.lesions:Lesions(hospitals=5, patients_per_hospital=20)",
    "size": 16,
    "hospitals": 5,
    "byzantine": 1,
    "partition": "iid",
    "rounds": 2,
    "model": "small_cnn(width=2)",
    "root_size": 20,
}


def searched(ledger: Ledger) -> list[Trial]:
    return ledger.of("search")


def measured(
    study: Study, folder: Path, *, trials: int, resources: Resources = ONE, observers: tuple[Observer, ...] = ()
) -> Ledger:
    return run(study, Budget(trials), folder=folder, name=folder.name, resources=resources, observers=observers)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An experiment of seconds, as a file; its shards are shared by all studies beside it."""
    file = tmp_path_factory.mktemp("tune") / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    return str(file)


def test_validation_scans_choose_and_test_scans_measure_the_winner_once(tmp_path: Path) -> None:
    study = Hill(str(tmp_path / "diary"))
    ledger = measured(study, tmp_path / "hill", trials=12)
    best = study.choose(searched(ledger))
    assert best is not None
    assert best.figures["height"] == max(trial.figures["height"] for trial in searched(ledger))
    began = Counter(
        tuple(line.split()[1:]) for line in (tmp_path / "diary").read_text().splitlines() if "began" in line
    )
    assert [x for role, x in began if role == Role.TEST] == ["-1.0", str(best.choice["x"])]
    assert set(began.values()) == {1}
    assert sum(role == Role.VALIDATION for role, _ in began) == 12


def test_a_trial_that_raises_is_kept_with_its_error_and_the_others_go_on(tmp_path: Path) -> None:
    study = Hill(str(tmp_path / "diary"), cliff=0.0)
    ledger = measured(study, tmp_path / "hill", trials=10)
    assert len(searched(ledger)) == 10
    for trial in searched(ledger):
        assert trial.state == (State.FAILED if trial.choice["x"] > 0 else State.FINISHED)
        assert trial.error == (
            f"ValueError: fell off the cliff at {trial.choice['x']}" if trial.choice["x"] > 0 else ""
        )
    assert 0 < sum(trial.state is State.FAILED for trial in searched(ledger)) < 10
    page = conclude(study, ledger, tmp_path / "hill").read_text()
    assert "fell off the cliff" in page


@pytest.fixture(scope="module")
def twice(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Trial]]]:
    """The folder of a study that was asked for three trials, then for five, and its trials after each call."""
    folder = tmp_path_factory.mktemp("runs") / "hill"
    study = Hill(str(folder.parent / "diary"))
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI")  # a database of its own, beside the study
        for trials in (3, 5):
            with StudyTracker(folder, "hill", ["height"]) as tracker:
                ledger = measured(study, folder, trials=trials, observers=(tracker,))
            calls.append({trial.name: trial for trial in ledger})
    return folder, calls


def test_more_trials_may_be_asked_for_and_only_they_are_run(twice: tuple[Path, list[dict[str, Trial]]]) -> None:
    folder, (before, after) = twice
    assert {name: after[name] for name in before} == before
    assert len({trial.choice["x"] for trial in searched(Ledger(folder / "trials"))}) == 5


def test_mlflow_has_a_run_for_the_study_and_one_within_for_each_trial(
    twice: tuple[Path, list[dict[str, Trial]]],
) -> None:
    folder, (_, trials) = twice
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tune")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_name for run in parents] == ["hill"]
    children = {run.info.run_name: run for run in runs if run not in parents}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parents[0].info.run_id}
    assert set(children) == {trial.title for trial in trials.values()}
    for trial in trials.values():
        assert children[trial.title].data.metrics["height"] == pytest.approx(trial.figures["height"])
        assert children[trial.title].data.params["x"] == str(trial.choice["x"])


def test_the_hopeless_are_stopped_and_never_win(tmp_path: Path) -> None:
    study = Race()
    ledger = measured(study, tmp_path / "race", trials=16)
    stopped = [trial for trial in searched(ledger) if trial.state is State.STOPPED]
    best = study.choose(searched(ledger))
    assert stopped
    assert {len(trial.steps) for trial in stopped} == {2}
    assert best is not None
    assert best.state is State.FINISHED
    # After the first look a stopped runner has fewer seconds on the clock than any that ran to its end.
    assert min(trial.figures["seconds"] for trial in stopped) < best.figures["seconds"]
    assert best.choice["pace"] == min(trial.choice["pace"] for trial in searched(ledger))


@pytest.mark.slow
def test_a_killed_worker_costs_no_trial(tmp_path: Path) -> None:
    study = Hill(str(tmp_path / "diary"), deadly=True)
    ledger = measured(study, tmp_path / "hill", trials=4)
    assert Path(f"{study.diary}.grave").exists()
    assert [(trial.number, trial.state) for trial in searched(ledger)] == [(n, State.FINISHED) for n in range(4)]
    assert all(len(trial.steps) == 2 for trial in searched(ledger))


@pytest.mark.slow
def test_a_killed_driver_loses_nothing_and_a_second_study_beside_it_minds_nothing(tmp_path: Path) -> None:
    study = Hill(str(tmp_path / "diary"), pause_s=0.2)
    text = f"{ROOT / 'tests/helpers/hills.py'}:Hill(diary={study.diary!r}, pause_s=0.2)"
    words = ["-m", "fedplatform", "tune", text, "--trials", "12", "--runs", str(tmp_path), "--name", "first"]
    with (tmp_path / "said").open("w") as said:
        driver = subprocess.Popen(
            [sys.executable, *words], env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/helpers'}"},
            stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 300
            while not Path(study.diary).exists() or Path(study.diary).read_text().count("ended") < 3:
                assert driver.poll() is None, (tmp_path / "said").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            with pytest.raises(ExperimentError, match="going on in another process"):
                measured_as(study, tmp_path / "first", text)
        finally:
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
    over = {trial.name: trial for trial in Ledger(tmp_path / "first" / "trials") if trial.is_over}
    under_way = [trial for trial in Ledger(tmp_path / "first" / "trials") if not trial.is_over]
    assert over
    assert under_way
    ledger = measured_as(study, tmp_path / "first", text)
    trials = {trial.name: trial for trial in searched(ledger)}
    assert sorted(trial.number for trial in trials.values()) == list(range(12))
    assert all(trial.state is State.FINISHED for trial in trials.values())
    assert {name: trials[name] for name in over} == over
    assert all(trials[trial.name].choice == trial.choice for trial in under_way)
    ended = Counter(line for line in Path(study.diary).read_text().splitlines() if line.startswith("ended validation"))
    assert all(ended[f"ended validation {trial.choice['x']}"] == 1 for trial in over.values())


def measured_as(study: Study, folder: Path, text: str) -> Ledger:
    return run(study, Budget(12), folder=folder, name=describe_study(parse_study(text, {}, seed=0)))


@pytest.mark.slow
def test_the_most_harmful_attack_is_a_file_that_run_takes(base: str, tmp_path: Path) -> None:
    study = Poisoning(rule="median", base=base, attacks=("sign_flip", "scaling"), rules=("mean",))
    folder = Path(base).parent / "poisoning"
    ledger = measured(study, folder, trials=3)
    page = conclude(study, ledger, folder).read_text()
    winner = Experiment.from_settings(load_settings(str(folder / "winner.yaml")))
    best = study.choose(searched(ledger))
    assert best is not None
    assert winner == study.experiment(best.choice)
    assert winner.rule_slug == "median"
    tested = {trial.label: trial.figures["accuracy"] for trial in ledger.of("test")}
    assert set(tested) == {"no attack", "usual attack", f"winner {best.name}"}
    curves = pd.read_csv(folder / "curves.csv")
    assert set(curves["rule"]) == {"median", "mean"}
    assert set(curves["scans"]) == {"test"}
    for word in (
        "Where rules break down",
        "Slices",
        "accuracy against strength",
        "Byzantine hospitals",
    ):
        assert word in page


@pytest.mark.slow
def test_actors_of_a_trial_find_what_its_own_process_finds(base: str) -> None:
    folder = Path(base).parent
    study = Poisoning(base=base, attacks=("sign_flip",), rules=())
    alone, hosted = (
        measured(study, folder / f"hosts{hosts}", trials=1, resources=Resources(jobs=1, hosts=hosts))
        for hosts in (0, 1)
    )
    assert [trial.steps for trial in alone] == [trial.steps for trial in hosted]


def test_a_trial_that_no_cluster_could_hold_is_refused_at_once(base: str, tmp_path: Path) -> None:
    wanted = Resources(gpus=0.5, hosts=2)
    assert wanted.placement().bundles == [{"CPU": 1.0}, *[{"CPU": 1.0, "GPU": 0.25}] * 2]
    assert replace(wanted, hosts=0).placement().bundles == [{"CPU": 1.0, "GPU": 0.5}]
    with pytest.raises(ExperimentError, match=r"a trial needs 0\.5 GPU, the cluster has 0"):
        measured(Poisoning(base=base), tmp_path / "none", trials=1, resources=wanted)


@pytest.mark.slow
def test_trust_is_judged_by_its_worst_attack(base: str) -> None:
    folder = Path(base).parent / "trust"
    study = Trust(base=base, attacks=("sign_flip", "none"), scorers=("robust",))
    ledger = measured(study, folder, trials=2)
    whole = [trial for trial in ledger if trial.state is State.FINISHED]
    assert whole
    for trial in whole:
        assert trial.figures["worst_accuracy"] == min(trial.figures["sign_flip"], trial.figures["none"])
    conclude(study, ledger, folder)
    assert Experiment.from_settings(load_settings(str(folder / "winner.yaml"))).rule_slug == "trust"


@pytest.mark.slow
def test_a_duel_ends_when_neither_gains_and_its_trace_is_the_result(base: str) -> None:
    folder = Path(base).parent / "duel"
    study = Duel(base=base, rules=("mean", "median"), attacks=("sign_flip", "scaling"), turns=4)
    ledger = measured(study, folder, trials=3)
    turns = sorted({trial.phase for trial in ledger if trial.phase.startswith("turn")})
    labels = [trial.label for trial in ledger.of("test")]
    assert turns[0] == "turn1-attacker"
    blows = [f"after turn {number}, the {turn.partition('-')[2]}'s" for number, turn in enumerate(turns, 1)]
    assert labels == ["the beginning", *blows, "winner"]
    assert "The duel" in conclude(study, ledger, folder).read_text()
    assert (folder / "winner.yaml").is_file()


@pytest.mark.slow
def test_settings_of_a_defence_are_searched_for_a_front(defended: Path, tmp_path: Path) -> None:
    study = Purification(run=str(defended), hospitals=1, scans=6, attack_steps=2)
    ledger = measured(study, tmp_path / "front", trials=3)
    assert all(trial.state is State.FINISHED for trial in ledger), [trial.error for trial in ledger]
    page = conclude(study, ledger, tmp_path / "front").read_text()
    assert "Pareto front" in page
    DefenceSettings.from_settings(yaml.safe_load((tmp_path / "front" / "defence.yaml").read_text()))
    assert {trial.label.partition(" ")[0] for trial in ledger.of("test")} == {"default", "no", "winner"}


@pytest.mark.parametrize(
    ("robust", "clean", "chosen"),
    [
        ((0.70, 0.74, 0.72), (0.8, 0.8, 0.8), 0),  # a lead within one standard error is none
        ((0.60, 0.74, 0.72), (0.8, 0.8, 0.8), 2),  # two lead; the quicker one
        ((0.60, 0.74, 0.66), (0.8, 0.8, 0.8), 1),
        ((0.60, 0.74, 0.72), (0.8, 0.7, 0.8), 2),  # who answers clean scans worse is out
    ],
)
def test_the_defences_own_settings_give_way_only_to_what_is_better_than_chance(
    defended: Path, robust: tuple[float, ...], clean: tuple[float, ...], chosen: int
) -> None:
    trials = [
        Trial("search", number, {}, state=State.FINISHED, steps=({**figures, "standard_error": 0.05},))
        for number, figures in enumerate(
            {"robust_accuracy": r, "clean_accuracy": c, "milliseconds": 9.0 - number}
            for number, (r, c) in enumerate(zip(robust, clean, strict=True))
        )
    ]
    winner = Purification(run=str(defended)).choose(trials)
    assert winner is trials[chosen]


@pytest.mark.slow
def test_the_strongest_attack_on_a_scan_keeps_its_epsilon_and_its_budget(defended: Path, tmp_path: Path) -> None:
    study = Evasion(run=str(defended), hospitals=1, scans=6, gradients=4)
    ledger = measured(study, tmp_path / "evasion", trials=4)
    assert all(trial.state is State.FINISHED for trial in ledger), [trial.error for trial in ledger]
    conclude(study, ledger, tmp_path / "evasion")
    assert "attack" in yaml.safe_load((tmp_path / "evasion" / "attack.yaml").read_text())


@pytest.mark.slow
def test_the_study_that_the_docs_show_runs_as_any_other(base: str, tmp_path: Path) -> None:
    page = (ROOT / "docs/tuning.md").read_text()
    block = next(part for part in page.split("```python\n")[1:] if part.startswith("# my_study.py"))
    file = tmp_path / "my_study.py"
    file.write_text(block.partition("```")[0])
    study = parse_study(f"{file}:Pace", {"base": base}, seed=1)
    folder = Path(base).parent / "pace"
    ledger = measured(study, folder, trials=2)
    conclude(study, ledger, folder)
    best = study.choose(searched(ledger))
    assert best is not None
    winner = Experiment.from_settings(load_settings(str(folder / "winner.yaml")))
    assert winner.learning_rate == best.choice["learning_rate"]
    assert {trial.title for trial in ledger.of("test")} == {"default", f"winner {best.name}"}
