"""Runs that start from given weights, go on for more rounds, or begin where another one ended."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file

from fedplatform.core.messages import RoundReport
from fedplatform.data.shards import Manifest
from fedplatform.experiments.callbacks import Callback
from fedplatform.experiments.defence.load import read_classifier, read_experiment
from fedplatform.experiments.engine import InProcessEngine, cohort_plan, local_training
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.run import resume, run
from fedplatform.experiments.run_folder import RunFolder
from fedplatform.experiments.weights import digest_of, read_start, start_card
from fedplatform.learning.models import TimmModel
from fedplatform.learning.training import Trainer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside MLflow's own use of SQLAlchemy


class Listener(Callback):
    """Keeps what it hears of weights."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def weights_loaded(self, words: str) -> None:
        self.words.append(words)


def ran(experiment: Experiment, shards: Path, runs: Path, name: str, **changes: object) -> RunFolder:
    folder, _ = run(experiment, engine=InProcessEngine(), runs=runs, name=name, shards=shards, **changes)  # type: ignore[arg-type]
    return folder


def attack_free(small: Experiment, **changes: object) -> Experiment:
    return small.replace(**{"rule": "mean", "attack": "none", "byzantine": 0, "rounds": 1, **changes})


def trainer_of(experiment: Experiment, shards: Path) -> Trainer:
    return Trainer(cohort_plan(experiment, shards, state_folder=Path()).training)


@pytest.fixture(scope="module")
def stored(small: Experiment, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights in every kind of file."""
    folder = tmp_path_factory.mktemp("stored")
    training = small.replace(seed=9).local_training(channels=1, num_classes=len(Manifest.load(shards).classes))
    state = {name.removeprefix("body."): v for name, v in Trainer(training).model.state_dict().items() if "." in name}
    files = {kind: folder / f"weights.{kind}" for kind in ("safetensors", "pth", "pt")}
    save_file({name: value.numpy().copy(order="C") for name, value in state.items()}, files["safetensors"])
    torch.save(state, files["pth"])
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, files["pt"])
    return files


@pytest.mark.parametrize("kind", ["safetensors", "pth", "pt"])
def test_a_run_starts_from_a_file_and_says_so(
    small: Experiment, shards: Path, stored: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    listener = Listener()
    experiment = attack_free(small, weights=str(stored[kind]), algorithm="fedbn")
    folder = ran(experiment, shards, tmp_path, "run", callbacks=[listener])
    begun = read_start(folder.start)
    expected = load_file(stored["safetensors"])
    assert begun.keys() == expected.keys()
    assert all((begun[name] == expected[name]).all() for name in expected)
    card = start_card(folder.start)
    assert card["sha256"] == digest_of(expected), "the digest is of the weights, whatever their file"
    assert listener.words == [card["words"]]
    assert "nothing is new" in card["words"]
    assert yaml.safe_load((folder.path / "experiment.yaml").read_text())["weights"] == str(stored[kind])
    assert card["sha256"][:16] in (folder.path / "report.html").read_text()


def test_every_hospital_and_the_server_start_from_the_same_bits(
    small: Experiment, shards: Path, stored: dict[str, Path], tmp_path: Path
) -> None:
    experiment = attack_free(small, weights=str(stored["pth"]), algorithm="fedbn_p")
    plan = cohort_plan(experiment, shards, state_folder=tmp_path)
    sent = pickle.loads(pickle.dumps(plan))  # as to an actor on a machine that has no such file
    stored["pth"].rename(tmp_path / "gone.pth")
    try:
        server, hospital = Trainer(plan.training), Trainer(sent.training)
    finally:
        (tmp_path / "gone.pth").rename(stored["pth"])
    assert server.initial_weights.tobytes() == hospital.initial_weights.tobytes()
    assert all(torch.equal(value, hospital.initial_personal[name]) for name, value in server.initial_personal.items())
    other_seed = trainer_of(experiment.replace(seed=4), shards)
    assert server.initial_weights.tobytes() == other_seed.initial_weights.tobytes(), "no weight is left to the seed"


def test_a_damaged_start_is_not_believed(
    small: Experiment, shards: Path, stored: dict[str, Path], tmp_path: Path
) -> None:
    folder = ran(attack_free(small, weights=str(stored["pth"])), shards, tmp_path, "run")
    data = bytearray(folder.start.read_bytes())
    data[-1] ^= 1
    folder.start.write_bytes(data)
    with pytest.raises(ExperimentError, match="damaged: its SHA-256"):
        read_start(folder.start)


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("/tmp/should-not-be-there"),)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"0.weight": torch.zeros(1)}, r"0\.weight is \(4, 1, 3, 3\) here and \(1,\) there"),
        ([1, 2], "save the state_dict of the network"),
        ({"state_dict": Harmful()}, "[Ww]eights.only"),
    ],
)
def test_what_is_no_state_of_the_network_is_refused_in_one_line(
    small: Experiment, shards: Path, tmp_path: Path, content: object, said: str
) -> None:
    file = tmp_path / "bad.pth"
    torch.save(content, file)
    with pytest.raises(ExperimentError, match=said) as refused:
        ran(attack_free(small, weights=str(file)), shards, tmp_path / "runs", "run")
    assert "\n" not in str(refused.value)
    assert not Path("/tmp/should-not-be-there").exists(), "a pickle runs no code"
    assert not (tmp_path / "runs" / "run").exists()


def test_weights_that_nobody_has_are_refused(small: Experiment, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="weights are none, imagenet, a file"):
        small.replace(weights="imagent")
    with pytest.raises(ExperimentError, match="there is no such file"):
        small.replace(weights="nowhere.pth").local_training(channels=1, num_classes=2)
    with pytest.raises(ExperimentError, match="ImageNet weights are of timm's networks"):
        small.replace(weights="imagenet").local_training(channels=1, num_classes=2)
    with pytest.raises(ExperimentError, match="freeze body needs weights"):
        small.replace(freeze="body")


def test_imagenet_weights_bring_their_pixels_along() -> None:
    chosen = Experiment.from_settings({"model": "resnet18", "weights": "imagenet"})
    assert chosen.model == TimmModel("resnet18", pixels="timm")
    again = Experiment.from_settings(chosen.settings())
    assert (again.model, again.weights, again.freeze) == (chosen.model, chosen.weights, ())
    assert Experiment.from_settings({"model": "resnet18"}).model == TimmModel("resnet18")


def test_a_frozen_part_stays_in_a_run_under_attack(
    small: Experiment, shards: Path, stored: dict[str, Path], tmp_path: Path
) -> None:
    attacked = {"byzantine": 2, "attack": "gaussian_noise", "weights": str(stored["pth"]), "freeze": "body"}
    folder = ran(attack_free(small, **attacked), shards, tmp_path, "run")
    ended = load_file(folder.path / "global.safetensors")
    assert all(name.startswith("body.18.") for name in ended), "only the head was sent"
    reopened = Trainer(local_training(read_experiment(folder.path), Manifest.load(shards)))
    served = read_classifier(reopened, folder.path, "hospital-00").state_dict()
    onward = attack_free(small, weights=str(folder.path))
    begun = trainer_of(onward, shards).model.state_dict()
    original = load_file(stored["safetensors"])
    for name, value in original.items():
        expected = ended.get(f"body.{name}", value)
        for state in (begun, served):
            assert (state[f"body.{name}"].numpy() == expected).all(), "what was frozen, and the trained head"


def test_a_run_starts_where_an_earlier_one_ended(small: Experiment, shards: Path, tmp_path: Path) -> None:
    first = ran(attack_free(small, algorithm="fedavg"), shards, tmp_path, "first")
    started = trainer_of(attack_free(small, algorithm="fedavg", weights=str(first.path), seed=3), shards)
    ended = load_file(first.path / "global.safetensors")
    parts = started.layout.unflatten(started.initial_weights)
    assert all((parts[name] == value).all() for name, value in ended.items())


def test_batch_normalisation_that_stayed_in_the_hospitals_begins_anew_and_is_named(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    first = ran(attack_free(small, algorithm="fedbn"), shards, tmp_path, "first")
    listener = Listener()
    ran(attack_free(small, algorithm="fedbn", weights=str(first.path)), shards, tmp_path, "next", callbacks=[listener])
    assert "new: 1, 5, 9, 13" in listener.words[0]


def test_an_unfinished_run_and_other_pixels_are_refused(small: Experiment, shards: Path, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "begun")
    folder.write_settings(small.settings())
    with pytest.raises(ExperimentError, match="the run is not finished"):
        trainer_of(attack_free(small, weights=str(folder.path)), shards)
    save_file({"body.x": np.zeros(1)}, folder.path / "global.safetensors")
    folder.write_settings({**small.settings(), "model": "timm(name='resnet18', pixels='timm')"})
    with pytest.raises(ExperimentError, match="take --model \"timm\\(name='resnet18', pixels='timm'\\)\""):
        trainer_of(attack_free(small, model="resnet18", weights=str(folder.path)), shards)


def test_a_model_in_mlflow_is_a_source(
    small: Experiment, shards: Path, stored: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    made = client.create_experiment("mine", artifact_location=(tmp_path / "artifacts").as_uri())
    logged = client.create_run(made).info
    client.log_artifact(logged.run_id, str(stored["safetensors"]), "model")
    client.create_registered_model("mine")
    client.create_model_version("mine", f"{logged.artifact_uri}/model", logged.run_id)
    for text in ("models:/mine", "models:/mine/1", "models:/mine/1/weights.safetensors"):
        begun = trainer_of(attack_free(small, weights=text), shards).model.state_dict()
        assert all((begun[f"body.{n}"].numpy() == v).all() for n, v in load_file(stored["safetensors"]).items())
    with pytest.raises(ExperimentError, match=r"say which file.*weights\.safetensors"):
        trainer_of(attack_free(small, weights="models:/mine/1/other.pth"), shards)
    with pytest.raises(ExperimentError, match="not in MLflow"):
        trainer_of(attack_free(small, weights="models:/yours"), shards)


@pytest.mark.parametrize(
    "changes", [{"algorithm": "fedavg"}, {"algorithm": "fedbn_p", "rule": "fltrust", "byzantine": 1, "attack": "alie"}]
)
def test_a_finished_run_goes_on_for_more_rounds(
    small: Experiment, shards: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    folder = ran(attack_free(small, **changes), shards, tmp_path, "run")
    with pytest.raises(ExperimentError, match="is finished after 1 rounds; --rounds N goes on"):
        RunFolder.reopen(tmp_path, "run")
    with pytest.raises(ExperimentError, match="has done 1 rounds; --rounds is more than that, got 1"):
        RunFolder.reopen(tmp_path, "run", rounds=1)
    first = load_file(folder.path / "global.safetensors")
    reports: list[RoundReport] = resume(RunFolder.reopen(tmp_path, "run", rounds=3), engine=InProcessEngine(), rounds=3)
    assert [report.round_number for report in reports] == [1, 2, 3]
    assert folder.read_settings()["rounds"] == 3
    second = load_file(folder.path / "global.safetensors")
    assert any((second[name] != value).any() for name, value in first.items())
    assert folder.rounds_done == 3
    assert len(list(folder.checkpoints.glob("round-*"))) == 1, "only the last is kept"


def test_more_rounds_do_not_outdate_a_defence(small: Experiment, shards: Path, tmp_path: Path) -> None:
    folder = ran(attack_free(small), shards, tmp_path, "run")
    (folder.path / "defence").mkdir()
    with pytest.raises(ExperimentError, match="defence was trained for this run as it is"):
        resume(folder, engine=InProcessEngine(), rounds=3)
    assert folder.read_settings()["rounds"] == 1
