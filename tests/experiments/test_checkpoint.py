"""Nothing is lost: a stopped run goes on bit for bit, whatever it carries, and a damaged checkpoint is not believed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from mlflow.tracking import MlflowClient
from safetensors.numpy import load_file

from fedplatform.core.compute import ComputeError
from fedplatform.core.messages import RoundReport
from fedplatform.core.storable import NotStorableError, from_plain, to_plain
from fedplatform.experiments.callbacks import EachRound
from fedplatform.experiments.checkpoint import Checkpoint, CheckpointFolder, Checkpoints, require_storable
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.rule_text import parse_rule
from fedplatform.experiments.run import resume, run
from fedplatform.experiments.run_folder import RunFolder
from fedplatform.federated.aggregation import Aggregator, Mean
from fedplatform.federated.hospital_state import KEPT_ROUNDS, Launch, OwnState, SupersededError
from fedplatform.federated.server import FederationState
from fedplatform.federated.trust import DualAttention, Hybrid, OptiGradTrust, TrustPolicy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside MLflow's own use of SQLAlchemy


class PulledPlugError(Exception):
    """The end of a process that nobody asked for."""


def pull_the_plug(after: int) -> EachRound:
    def observe(report: RoundReport) -> None:
        if report.round_number == after:
            raise PulledPlugError

    return EachRound(observe)


def bits(folder: Path) -> dict[str, bytes]:
    """Everything that a finished run's models are made of."""
    files = [folder / "global.safetensors", *sorted((folder / "hospitals").glob("*.safetensors"))]
    return {file.name: file.read_bytes() for file in files}


def without_label(folder: Path) -> dict[str, dict[str, bytes]]:
    """The same as plain tensors: a hospital's file is labelled with its launch, and there are more of them."""
    from safetensors.numpy import load

    return {name: {key: value.tobytes() for key, value in load(data).items()} for name, data in bits(folder).items()}


def figures(folder: Path) -> pd.DataFrame:
    """What the run says of itself, but for the seconds it took."""
    rounds, hospitals = (pd.read_parquet(folder / f"{name}.parquet") for name in ("rounds", "hospitals"))
    frame = hospitals.merge(rounds, on="round_number", suffixes=("", "_of_round"))
    return frame.drop(columns=["confusion", *(c for c in frame if "seconds" in c)])


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "fedavg", "rule": "centered_clipping", "attack": "poisoned_fl(period=2)"},
        {"algorithm": "fedbn_p", "rule": "fltrust", "attack": "sign_flip"},
        {"algorithm": "apfl", "rule": "mean", "attack": "none"},
        {"algorithm": "fedavg", "rule": "fldetector", "attack": "on_off(honest=1, lying=1)"},
        pytest.param(
            {"algorithm": "fedbn_p", "rule": "hybrid+trust", "attack": "fingerprint_aware"}, marks=pytest.mark.slow
        ),
    ],
    ids=[
        "last step, attacker's memory",
        "server's own batch normalisation",
        "own models",
        "rounds before",
        "all that trust learns",
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    small: Experiment, shards: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    experiment = small.replace(**{**changes, "rounds": 4, "f": 1})
    engine = InProcessEngine()
    run(experiment, engine=engine, runs=tmp_path, name="unbroken", shards=shards)
    with pytest.raises(PulledPlugError):
        run(
            experiment,
            engine=engine,
            runs=tmp_path,
            name="broken",
            shards=shards,
            callbacks=[pull_the_plug(1)],
        )
    seen: list[int] = []
    for after in (2, 4):
        folder = RunFolder.reopen(tmp_path, "broken")
        if after < experiment.rounds:
            with pytest.raises(PulledPlugError):
                resume(folder, engine=engine, shards=shards, callbacks=[pull_the_plug(after)])
            continue
        resume(
            folder, engine=engine, shards=shards, callbacks=[EachRound(lambda report: seen.append(report.round_number))]
        )
    assert seen == [3, 4], "no finished round is done twice"
    assert without_label(tmp_path / "broken") == without_label(tmp_path / "unbroken")
    pd.testing.assert_frame_equal(figures(tmp_path / "broken"), figures(tmp_path / "unbroken"))
    assert (tmp_path / "broken" / "report.html").exists()
    kept = sorted(path.name for path in (tmp_path / "broken" / "checkpoints").iterdir())
    assert kept == ["launch", "round-000004"], "a finished run keeps the last, to go on for more rounds"


@pytest.fixture(scope="module")
def stopped(small: Experiment, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six rounds that was stopped after the fifth. Nobody writes here; copy it."""
    runs = tmp_path_factory.mktemp("runs")
    experiment = small.replace(rounds=6, rule="mean", attack="none", byzantine=0)
    with pytest.raises(PulledPlugError) as stop:
        run(
            experiment,
            engine=InProcessEngine(),
            runs=runs,
            name="stopped",
            shards=shards,
            callbacks=[pull_the_plug(5)],
        )
    assert f"fedplatform run --resume stopped --runs {runs}" in stop.value.__notes__[0]
    run(experiment, engine=InProcessEngine(), runs=runs, name="unbroken", shards=shards)
    return runs


@pytest.fixture
def copied(stopped: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(stopped / "stopped", tmp_path / "stopped")
    (tmp_path / "stopped" / "mlflow-run").unlink()
    return RunFolder.reopen(tmp_path, "stopped")


def checkpoints_of(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.glob("round-*"))


def opened(folder: RunFolder) -> Checkpoints:
    experiment = Experiment.from_settings(folder.read_settings())
    return Checkpoints.open(CheckpointFolder.of(folder.checkpoints, experiment), experiment.rule)


def test_the_last_rounds_are_kept_and_no_pickle_among_them(copied: RunFolder) -> None:
    assert checkpoints_of(copied) == ["round-000003", "round-000004", "round-000005"]
    newest = copied.checkpoints / "round-000005"
    checked = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=newest, capture_output=True, check=False)
    assert checked.returncode == 0
    names = ["SHA256SUMS", "hospitals.parquet", "rounds.parquet", "state.json", "state.safetensors"]
    assert sorted(path.name for path in newest.iterdir()) == names
    for file in copied.checkpoints.rglob("*"):
        assert file.is_dir() or not file.read_bytes().startswith(b"\x80"), "no pickle"


def spoil(place: Path, damage: str) -> None:
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        place.unlink()
    else:
        place.write_bytes(bytes(data) if damage == "flipped" else bytes(data[: len(data) // 2]))


@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "hospitals.parquet", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_corrupt_checkpoint_is_refused_and_the_one_before_taken(copied: RunFolder, file: str, damage: str) -> None:
    spoil(copied.checkpoints / "round-000005" / file, damage)
    found = opened(copied)
    assert found.found is not None
    assert found.found.state.round_number == 4
    assert "round-000005 is damaged" in found.refused[0]


def test_a_run_goes_on_before_a_corrupt_checkpoint_says_so_and_ends_as_if_unbroken(
    copied: RunFolder, stopped: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(copied.checkpoints / "round-000005" / "state.safetensors", "flipped")
    with caplog.at_level(logging.WARNING):
        resume(copied, engine=InProcessEngine(), shards=shards)
    assert "round-000005 is damaged" in caplog.text
    assert without_label(copied.path) == without_label(stopped / "unbroken")
    pd.testing.assert_frame_equal(figures(copied.path), figures(stopped / "unbroken"))


def test_no_intact_checkpoint_is_an_error_and_not_a_new_beginning(copied: RunFolder, shards: Path) -> None:
    for name in checkpoints_of(copied):
        (copied.checkpoints / name / "state.json").write_text("{}")
    with pytest.raises(ExperimentError, match=r"no checkpoint in .* is intact"):
        resume(copied, engine=InProcessEngine(), shards=shards)
    assert len(checkpoints_of(copied)) == KEPT_ROUNDS, "nothing is thrown away"


def test_another_experiment_is_refused(copied: RunFolder, shards: Path) -> None:
    copied.write_settings({**copied.read_settings(), "learning_rate": 0.01})
    with pytest.raises(ExperimentError, match=r"another experiment .*: learning_rate=0\.05 there, 0\.01 here"):
        resume(copied, engine=InProcessEngine(), shards=shards)


def without_settings(folder: RunFolder, *names: str) -> None:
    """Make the run one that older software began, which did not have these settings."""
    settings = folder.read_settings()
    folder.write_settings({key: value for key, value in settings.items() if key not in names})
    for checkpoint in folder.checkpoints.glob("round-*"):
        state = json.loads((checkpoint / "state.json").read_text())
        for name in names:
            del state["experiment"][name]
        data = json.dumps(state, indent=1).encode()
        sums = (checkpoint / "SHA256SUMS").read_text().splitlines()
        kept = [line for line in sums if not line.endswith("  state.json")]
        (checkpoint / "state.json").write_bytes(data)
        (checkpoint / "SHA256SUMS").write_text(
            "".join(f"{line}\n" for line in [f"{hashlib.sha256(data).hexdigest()}  state.json", *kept])
        )


def test_a_run_begun_before_a_setting_existed_goes_on_with_its_default(
    copied: RunFolder, stopped: Path, shards: Path
) -> None:
    without_settings(copied, "sampling", "transport")
    resume(copied, engine=InProcessEngine(), shards=shards)
    assert without_label(copied.path) == without_label(stopped / "unbroken")


def test_a_run_begun_before_a_setting_existed_goes_on_with_no_other_value(copied: RunFolder, shards: Path) -> None:
    without_settings(copied, "sampling", "transport")
    copied.write_settings({**copied.read_settings(), "sampling": "groups"})
    with pytest.raises(ExperimentError, match=r"another experiment .*: sampling='scans' there, 'groups' here"):
        resume(copied, engine=InProcessEngine(), shards=shards)


def test_a_run_goes_on_on_another_device_and_says_so_in_its_settings(
    copied: RunFolder, stopped: Path, shards: Path
) -> None:
    copied.write_settings({**copied.read_settings(), "device": "cuda:7"})  # of the machine on which it was begun
    with pytest.raises(ComputeError, match=r"^--device cuda:7: this machine has "):
        resume(copied, engine=InProcessEngine(), shards=shards)
    resume(copied, engine=InProcessEngine(), shards=shards, device="cpu")
    assert copied.read_settings()["device"] == "cpu"
    ended, unbroken = (load_file(folder / "global.safetensors") for folder in (copied.path, stopped / "unbroken"))
    assert all(ended[name].tobytes() == unbroken[name].tobytes() for name in unbroken)


def test_two_processes_never_work_on_one_run(copied: RunFolder, shards: Path) -> None:
    with copied.alone(), pytest.raises(ExperimentError, match="going on in another process"):
        resume(RunFolder(copied.path), engine=InProcessEngine(), shards=shards)


def test_a_server_that_was_taken_for_dead_writes_no_more(copied: RunFolder) -> None:
    old = opened(copied)
    new = opened(copied)
    assert old.found is not None
    with pytest.raises(SupersededError):
        old.save(old.found)
    new.save(old.found)


def test_what_a_killed_writer_left_half_written_is_not_taken_for_a_checkpoint(copied: RunFolder) -> None:
    shutil.copytree(copied.checkpoints / "round-000005", copied.checkpoints / ".round-000006.partial")
    there = opened(copied)
    assert there.found is not None
    assert there.found.state.round_number == 5
    state = replace(there.found.state, round_number=6)
    there.save(Checkpoint(state, there.found.reports))
    assert not list(copied.checkpoints.glob(".round*")), "and goes with the next one"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB, or a skip where this process may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("a small disk needs the right to mount one")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # MLflow keeps its database open


def test_a_full_disk_is_one_clear_error_and_the_last_checkpoint_is_intact(
    small: Experiment, shards: Path, tiny_disk: Path
) -> None:
    experiment = small.replace(rounds=3, rule="mean", attack="none", byzantine=0)

    def fill_the_disk(report: RoundReport) -> None:
        with suppress(OSError), (tiny_disk / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    folder = tiny_disk / "full"
    with pytest.raises((ExperimentError, OSError)) as refused:
        run(
            experiment,
            engine=InProcessEngine(),
            runs=tiny_disk,
            name="full",
            shards=shards,
            callbacks=[EachRound(fill_the_disk)],
        )
    assert "No space left on device" in str(refused.value)
    assert [path.name for path in sorted((folder / "checkpoints").glob("round-*"))] == ["round-000001"]
    assert not list(folder.glob("checkpoints/.round*")), "nothing half written is left to fill the disk"
    (tiny_disk / "filler").unlink()
    reports = resume(RunFolder.reopen(tiny_disk, "full"), engine=InProcessEngine(), shards=shards)
    assert [report.round_number for report in reports] == [1, 2, 3]


def test_a_resumed_run_is_the_same_run_in_mlflow(small: Experiment, shards: Path, tmp_path: Path) -> None:
    experiment = small.replace(rounds=3, rule="mean", attack="none", byzantine=0)
    with pytest.raises(PulledPlugError):
        run(
            experiment,
            engine=InProcessEngine(),
            runs=tmp_path,
            name="mine",
            shards=shards,
            callbacks=[pull_the_plug(2)],
        )
    resume(RunFolder.reopen(tmp_path, "mine"), engine=InProcessEngine(), shards=shards)
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (kept,) = client.search_experiments(filter_string=f"name = '{experiment.data_slug}'")
    found = client.search_runs([kept.experiment_id])
    (federation,) = [r for r in found if r.info.run_name == "mine"]
    assert federation.info.status == "FINISHED"
    hospitals = [r for r in found if r.data.tags.get("mlflow.parentRunId") == federation.info.run_id]
    assert len(hospitals) == experiment.hospitals
    for one in (federation, *hospitals):
        metric = "train_seconds"
        steps = [figure.step for figure in client.get_metric_history(one.info.run_id, metric)]
        assert steps == [1, 2, 3], one.info.run_name


# What rules remember


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.bool_]), arrays.array_shapes(min_dims=0, min_side=0)
    ),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@settings(max_examples=30, deadline=None)
@given(memory=plain)
def test_every_plain_memory_comes_back_as_it_was(memory: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("plain")
    zeros = np.zeros(3, np.float32)
    place = CheckpointFolder(folder, {})
    Checkpoints.open(place, Mean()).save(Checkpoint(FederationState(1, zeros, zeros, memory), ()))
    found = Checkpoints.open(place, Mean()).found
    assert found is not None
    assert same(found.state.memory, memory)


@dataclass(frozen=True)
class Diary:
    """A memory of a user's own."""

    rounds: int


@dataclass(frozen=True)
class Remembers(Aggregator):
    """A mean with a memory of a kind that nobody declared."""

    def aggregate(self, deltas, evidence):
        before = evidence.memory or Diary(0)
        return replace(Mean()(deltas, evidence), memory=Diary(before.rounds + 1))


@dataclass(frozen=True)
class SaysWhatItRemembers(Remembers):
    """The same, declared."""

    memory_kinds = (Diary,)


@dataclass(frozen=True)
class LearnsInSecret:
    """A trust scorer that learns and does not say what."""

    needs_lessons = True


def test_a_memory_that_cannot_be_stored_is_refused_before_anybody_trains(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    experiment = small.replace(rule=Remembers(), attack="none", byzantine=0)
    with pytest.raises(ExperimentError, match=r"memory of Remembers cannot be stored.* is a Diary, .*extending\.md"):
        run(experiment, engine=InProcessEngine(), runs=tmp_path, name="mine", shards=shards)
    assert not (tmp_path / "mine").exists()
    with pytest.raises(ExperimentError, match="LearnsInSecret learns and must say what its skill is made of"):
        require_storable(OptiGradTrust(scorer=LearnsInSecret()), hospitals=5, has_root=True)


def test_a_declared_memory_is_stored(small: Experiment, shards: Path, tmp_path: Path) -> None:
    experiment = small.replace(rule=SaysWhatItRemembers(), attack="none", byzantine=0)
    with pytest.raises(PulledPlugError):
        run(
            experiment,
            engine=InProcessEngine(),
            runs=tmp_path,
            name="m",
            shards=shards,
            callbacks=[pull_the_plug(1)],
        )
    found = Checkpoints.open(CheckpointFolder.of(tmp_path / "m" / "checkpoints", experiment), experiment.rule).found
    assert found is not None
    assert found.state.memory == Diary(1)


@pytest.mark.parametrize("scorer", [DualAttention(), TrustPolicy(), Hybrid()], ids=lambda s: type(s).__name__)
def test_every_scorer_says_what_its_skill_is_made_of(scorer: object) -> None:
    require_storable(OptiGradTrust(scorer=scorer), hospitals=5, has_root=True)


def test_every_rule_of_the_package_can_be_stored() -> None:
    from fedplatform.experiments.rule_text import ALL_RULES

    for name in ALL_RULES:
        require_storable(parse_rule(name, f=1), hospitals=10, has_root=True)


def test_names_that_look_alike_are_told_apart() -> None:
    value = {"a/b": np.zeros(1), "a": {"b": np.ones(1)}, "a'": {"b": np.full(1, 2.0)}}
    assert same(from_plain(*to_plain(value, kinds=(), name="m"), kinds=()), value)


@pytest.mark.parametrize("value", [object(), {1: "a"}, np.array(["text"]), np.array([None]), Diary(1), 1j])
def test_what_is_no_number_and_no_text_is_refused_and_named(value: object) -> None:
    with pytest.raises(NotStorableError, match="memory/odd"):
        to_plain({"odd": value}, kinds=(), name="memory")


def test_tensors_come_back_as_tensors_in_declared_dataclasses() -> None:
    value = (Diary(3), {"t": torch.arange(6.0).reshape(2, 3).T, "s": np.float64(0.1)})
    tree, stored = to_plain(value, kinds=(Diary,), name="memory")
    diary, back = from_plain(tree, stored, kinds=(Diary,))
    assert diary == Diary(3)
    assert torch.equal(back["t"], value[1]["t"])
    assert type(back["s"]) is np.float64


# What hospitals keep


def kept(folder: Path, launch: Launch | None) -> OwnState:
    return OwnState(folder / "h.safetensors", launch=launch)


def value_of(state: OwnState) -> float | None:
    loaded = state.load()
    return None if loaded is None else float(loaded["x"])


@settings(max_examples=60, deadline=None)
@given(
    trained=st.lists(st.booleans(), min_size=1, max_size=12),
    back=st.integers(0, KEPT_ROUNDS),
    half_done=st.booleans(),
)
def test_a_hospital_goes_back_to_what_it_had_in_the_round_that_the_server_goes_back_to(
    trained: list[bool], back: int, half_done: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It need not have been there in every round; the slow version remembers every state that ever was."""
    folder = tmp_path_factory.mktemp("own")
    state, history = kept(folder, Launch(1, 0)), [None]
    for number, took_part in enumerate(trained, start=1):
        if took_part:
            state.keep({"x": torch.tensor(number + 0.5)}, round_number=number)  # after training
            state.keep({"x": torch.tensor(float(number))}, round_number=number)  # after its statistics were measured
        history.append(float(number) if took_part else history[-1])
    rounds = len(trained)
    if half_done:  # of a round that the server never finished
        state.keep({"x": torch.tensor(-1.0)}, round_number=rounds + 1)
    to = max(0, rounds - back + (1 if half_done and back else 0))
    for _ in range(2):  # it dies at once and is started again
        assert value_of(kept(folder, Launch(2, to))) == history[to]
    again = kept(folder, Launch(2, to))
    again.keep({"x": torch.tensor(100.0)}, round_number=to + 1)
    assert value_of(kept(folder, Launch(2, to))) == 100.0, "a process that dies later does not go back once more"
    assert len(list(folder.rglob("*.safetensors"))) <= KEPT_ROUNDS + 2
    with pytest.raises(SupersededError):
        state.keep({"x": torch.tensor(7.0)}, round_number=rounds + 2)
    assert value_of(kept(folder, Launch(2, to))) == 100.0


def test_the_same_state_is_the_same_file_bit_for_bit(tmp_path: Path) -> None:
    files = set()
    for _ in range(20):
        kept(tmp_path, Launch(2, 0)).keep({"x": torch.arange(3.0), "y": torch.zeros(2)}, round_number=1)
        files.add((tmp_path / "h.safetensors").read_bytes())
    assert len(files) == 1


def test_without_a_launch_only_the_newest_state_is_kept(tmp_path: Path) -> None:
    state = kept(tmp_path, None)
    for number in (1, 2, 3):
        state.keep({"x": torch.tensor(float(number))}, round_number=number)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["h.safetensors"]
    assert value_of(kept(tmp_path, None)) == 3.0
