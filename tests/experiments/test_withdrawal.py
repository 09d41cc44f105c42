"""A hospital leaves: it is not asked any more, nothing of it alone is left, and the run goes on bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from command_line import fedplatform
from playwright.sync_api import Page
from safetensors.numpy import load_file
from watched_page import rendered

from fedplatform.core.messages import HospitalState, RoundReport
from fedplatform.core.withdrawal import Withdrawal, read_withdrawals
from fedplatform.data.shards import Manifest, Shard
from fedplatform.data.splits import Role
from fedplatform.experiments.callbacks import EachRound
from fedplatform.experiments.checkpoint import CheckpointFolder, Checkpoints
from fedplatform.experiments.cross_site import cross_site
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.run import resume, run
from fedplatform.experiments.run_folder import RunFolder
from fedplatform.experiments.withdrawal import require_enough, withdraw
from fedplatform.federated.aggregation import Median
from fedplatform.federated.secure import GroupMemory
from fedplatform.federated.secure.exclusion import Exclusion
from fedplatform.federated.secure.group_rule import GroupTested
from fedplatform.federated.secure.groups import Seating
from fedplatform.federated.secure.suspicion import GroupTest


class PulledPlugError(Exception):
    """The end of a process that nobody asked for."""


def pull_the_plug(after: int) -> EachRound:
    def observe(report: RoundReport) -> None:
        if report.round_number == after:
            raise PulledPlugError

    return EachRound(observe)


@pytest.fixture(scope="module")
def stopped(small: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four rounds, stopped after the second, with scans of its own. Nobody writes here; copy it."""
    runs = tmp_path_factory.mktemp("runs")
    experiment = small.replace(rule="trust", attack="free_rider", rounds=4, quorum=3)
    with pytest.raises(PulledPlugError):
        run(experiment, engine=InProcessEngine(), runs=runs, name="scan", callbacks=[pull_the_plug(2)])
    return runs / "scan"


@pytest.fixture
def copied(stopped: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(stopped, tmp_path / "scan")))


def an_honest_one(folder: RunFolder) -> str:
    experiment = Experiment.from_settings(folder.read_settings())
    return next(name for name in experiment.hospital_ids() if name not in experiment.adversary().hospital_ids)


def an_attacker(folder: RunFolder) -> str:
    return Experiment.from_settings(folder.read_settings()).adversary().hospital_ids[0]


def bits(folder: RunFolder) -> dict[str, dict[str, bytes]]:
    files = [folder.path / "global.safetensors", *sorted(folder.state_folder.glob("*.safetensors"))]
    return {file.name: {key: value.tobytes() for key, value in load_file(file).items()} for file in files}


def figures(folder: RunFolder) -> pd.DataFrame:
    hospitals = pd.read_parquet(folder.path / "hospitals.parquet")
    return hospitals.drop(columns=[name for name in hospitals if "seconds" in name])


def memory(folder: RunFolder) -> object:
    experiment = Experiment.from_settings(folder.read_settings())
    found = Checkpoints.open(CheckpointFolder.of(folder.checkpoints, experiment), experiment.server_rule).found
    assert found is not None
    return found.state.memory


def test_what_is_of_this_hospital_alone_is_deleted_on_all_sides(copied: RunFolder) -> None:
    name = an_honest_one(copied)
    others = {path.relative_to(copied.path) for path in copied.path.rglob("*") if name not in str(path)}
    assert name in memory(copied).standings
    assert name in memory(copied).shapley
    assert any(copied.path.rglob(f"*{name}*")), "its state is there before"
    withdrawal = withdraw(copied, name).withdrawal
    assert [path.name for path in copied.path.rglob(f"*{name}*")] == [f"{name}.parquet"], "its shard, which is empty"
    shards = copied.path / "shards"
    assert [len(Shard.open(shards / f"{name}.parquet").labels(role)) for role in Role] == [0, 0, 0, 0]
    assert Manifest.load(shards).hospitals[int(name[-2:])].counts == {role.value: (0, 0) for role in Role}
    assert name not in memory(copied).standings
    assert name not in memory(copied).shapley
    assert len(memory(copied).standings) == 4
    assert [path.name for path in copied.checkpoints.glob("round-*")] == ["round-000002"]
    predicted = pq.read_table(copied.path / "predictions.parquet").column("hospital").to_pylist()
    assert name not in predicted
    assert len(set(predicted)) == 3
    gone = {path for path in others if not (copied.path / path).exists()}
    assert {path.parts[0] for path in gone} <= {"checkpoints"}, "nobody else's state"
    assert f"hospitals/{name}.safetensors" in withdrawal.removed
    assert f"shards/{name}.parquet" in withdrawal.removed
    assert "predictions.parquet" in withdrawal.changed


def test_an_attackers_memory_is_deleted_too(copied: RunFolder) -> None:
    name = an_attacker(copied)
    assert (copied.state_folder / "attacks" / f"{name}.safetensors").is_file()
    withdraw(copied, name)
    assert not list(copied.state_folder.rglob(f"*{name}*"))


def test_from_the_next_round_on_it_is_not_asked_and_every_record_says_so(copied: RunFolder, page: Page) -> None:
    name = an_honest_one(copied)
    withdraw(copied, name)
    reports = resume(RunFolder.reopen(copied.path.parent, "scan"), engine=InProcessEngine())
    for report in reports:
        states = {record.hospital_id: record for record in report.hospitals}
        assert len(states) == 5
        assert (states[name].state is HospitalState.WITHDRAWN) == (report.round_number > 2)
    assert states[name].reason == "withdrew after round 2; what it kept was deleted"
    assert (states[name].weight, states[name].num_examples, states[name].judged) == (0.0, 0, 0)
    assert not list(copied.state_folder.rglob(f"*{name}*")), "nor does it come back"
    kept = read_withdrawals(copied.path)
    assert [(one.hospital_id, one.after_round) for one in kept] == [(name, 2)]
    page.goto((copied.path / "report.html").as_uri())
    told = [row.split("\t") for row in rendered(page, "#events tbody tr")]
    assert ["3–4", name, "had withdrawn", "withdrew after round 2; what it kept was deleted"] in told
    matrix = cross_site(copied.path)["auc"].unstack()
    assert name not in {*matrix.index, *matrix.columns}


def test_a_stop_after_the_withdrawal_changes_no_bit(copied: RunFolder, tmp_path: Path) -> None:
    withdraw(copied, an_honest_one(copied))
    broken = RunFolder(Path(shutil.copytree(copied.path, tmp_path / "elsewhere" / "scan")))
    resume(copied, engine=InProcessEngine())
    with pytest.raises(PulledPlugError):
        resume(broken, engine=InProcessEngine(), callbacks=[pull_the_plug(3)])
    resume(broken, engine=InProcessEngine())
    assert bits(broken) == bits(copied)
    pd.testing.assert_frame_equal(figures(broken), figures(copied))


def test_the_rounds_after_it_are_those_of_a_federation_that_never_had_its_scans(copied: RunFolder) -> None:
    """Whatever lies where its shard was, nobody opens it."""
    name = an_honest_one(copied)
    withdraw(copied, name)
    twin = RunFolder(Path(shutil.copytree(copied.path, copied.path.parent / "twin")))
    (twin.path / "shards" / f"{name}.parquet").write_bytes(b"no shard at all")
    for folder in (copied, twin):
        resume(folder, engine=InProcessEngine())
    assert bits(twin) == bits(copied)


def test_a_finished_run_can_be_left_and_its_page_says_so(copied: RunFolder, page: Page) -> None:
    resume(copied, engine=InProcessEngine())
    cross_site(copied.path)
    for name in ("scans.parquet", "evaluation.parquet", "statistics.html"):
        (copied.path / name).write_bytes(b"figures of single scans")
    name, model = an_honest_one(copied), (copied.path / "global.safetensors").read_bytes()
    withdrawal = withdraw(copied, name).withdrawal
    assert withdrawal.after_round == 4
    assert {"scans.parquet", "evaluation.parquet", "statistics.html"} <= set(withdrawal.removed)
    assert (copied.path / "global.safetensors").read_bytes() == model
    assert len(figures(copied)) == 20, "figures of finished rounds stay"
    assert name not in (copied.path / "cross_site.parquet").read_bytes().decode("latin-1")
    page.goto((copied.path / "report.html").as_uri())
    assert any(name in row and "had withdrawn" in row for row in rendered(page, "#events tbody tr"))
    further = resume(RunFolder.reopen(copied.path.parent, "scan", rounds=5), engine=InProcessEngine(), rounds=5)
    assert further[-1].hospitals[-1].state is HospitalState.WITHDRAWN


def test_said_twice_it_is_one_withdrawal_and_finishes_what_was_left(copied: RunFolder) -> None:
    name = an_honest_one(copied)
    first = withdraw(copied, name).withdrawal
    (copied.state_folder / f"{name}.safetensors").write_bytes(b"left by a process that died")
    again = withdraw(copied, name).withdrawal
    assert (again.after_round, again.date) == (first.after_round, first.date)
    assert not (copied.state_folder / f"{name}.safetensors").exists()
    assert len(copied.withdrawals) == 1


def test_where_too_few_are_left_a_sentence_says_so_and_the_run_does_not_go_on(copied: RunFolder) -> None:
    experiment = Experiment.from_settings(copied.read_settings())
    honest = [name for name in experiment.hospital_ids() if name not in experiment.adversary().hospital_ids]
    assert withdraw(copied, honest[0]).warnings == ()
    assert withdraw(copied, honest[1]).warnings == ()
    told = "2 of 5 hospitals are left, and the quorum is 3: no further round could have an effect"
    assert withdraw(copied, honest[2]).warnings == (f"{told}; the run cannot go on, and its model stays as it is",)
    assert len(copied.withdrawals) == 3, "nobody is kept against its will"
    with pytest.raises(ExperimentError, match=told):
        resume(copied, engine=InProcessEngine())


@pytest.mark.parametrize(
    ("changes", "gone", "said"),
    [
        ({"rule": "krum", "f": 1, "quorum": 2}, 1, "4 of 5 hospitals are left, too few for the rule: Krum needs"),
        ({"quorum": 1, "f": 0}, 4, "1 of 5 hospitals are left, none of them honest"),
        ({"rule": "median", "privacy": "grouped(size=2)", "transport": "exact", "quorum": 2}, 2,
         "3 of 5 hospitals are left, too few for the rule: groups are compared with each other"),
    ],
)  # fmt: skip
def test_quorum_rule_and_groups_each_say_what_they_need(
    small: Experiment, changes: dict[str, object], gone: int, said: str
) -> None:
    experiment = small.replace(**changes)
    honest = [name for name in experiment.hospital_ids() if name not in experiment.adversary().hospital_ids]
    require_enough(experiment, [])
    with pytest.raises(ExperimentError) as refused:
        require_enough(experiment, honest[:gone])
    assert said in str(refused.value)


def test_an_unknown_hospital_and_one_outside_are_refused(copied: RunFolder) -> None:
    with pytest.raises(ExperimentError, match=r"no hospital is called 'hospital-9'; did you mean"):
        withdraw(copied, "hospital-9")
    copied.write_settings({**copied.read_settings(), "outside": ["hospital-00"]})
    with pytest.raises(ExperimentError, match="hospital-00 is outside: it withdraws by stopping its own program"):
        withdraw(copied, "hospital-00")
    assert copied.withdrawals == ()


def test_a_run_that_is_going_on_is_not_touched(copied: RunFolder) -> None:
    with copied.alone(), pytest.raises(ExperimentError, match="going on in another process"):
        withdraw(copied, an_honest_one(copied))


def test_scans_that_other_runs_use_are_not_deleted_but_named(small: Experiment, shards: Path, tmp_path: Path) -> None:
    experiment = small.replace(rule="mean", attack="none", rounds=1)
    run(experiment, engine=InProcessEngine(), runs=tmp_path, name="guest", shards=shards)
    folder = RunFolder(tmp_path / "guest")
    name = an_honest_one(folder)
    before = (shards / f"{name}.parquet").read_bytes()
    done = withdraw(folder, name)
    assert done.elsewhere == (f"{shards.resolve() / name}.parquet: its scans, which other runs may use too",)
    assert (shards / f"{name}.parquet").read_bytes() == before


def test_behind_masks_the_others_are_grouped_among_themselves(small: Experiment, shards: Path, tmp_path: Path) -> None:
    experiment = small.replace(
        rule="median", attack="sign_flip", privacy="grouped(size=2)", transport="exact", rounds=2, quorum=2
    )
    with pytest.raises(PulledPlugError):
        run(
            experiment, engine=InProcessEngine(), runs=tmp_path, name="masked", shards=shards,
            callbacks=[pull_the_plug(1)],
        )  # fmt: skip
    folder = RunFolder(tmp_path / "masked")
    name = an_honest_one(folder)
    withdraw(folder, name)
    assert name not in {member for test in memory(folder).tests for member in test.members}
    last = resume(folder, engine=InProcessEngine())[-1]
    assert {record.hospital_id: record.state for record in last.hospitals}[name] is HospitalState.WITHDRAWN
    assert last.had_effect
    assert name not in {member for test in memory(folder).tests for member in test.members}


def test_a_group_keeps_what_was_found_of_it_under_no_name() -> None:
    tests = (GroupTest(1, ("a", "b"), 0.2), GroupTest(2, ("b", "c"), 0.9), GroupTest(2, ("a", "d"), 1.0))
    out = (Exclusion("a", retest=4), Exclusion("b", retest=5))
    seating = Seating(("b",), "a", (("a", "b", 1.0), ("b", "c", 2.0)))
    before = GroupMemory(tests, ((1.0, 2.0),), out, inner={"a": 1, "c": 2}, seating=seating)
    after = GroupTested(Median()).forgetting(before, "a")
    assert isinstance(after, GroupMemory)
    assert [test.members for test in after.tests] == [("withdrawn 1", "b"), ("b", "c"), ("withdrawn 1", "d")]
    assert [test.soundness for test in after.tests] == [0.2, 0.9, 1.0]
    assert (after.lengths, after.shut_out, after.inner) == (((1.0, 2.0),), ("b",), {"c": 2})
    assert after.seating == Seating(("b",), "", (("b", "c", 2.0),))
    again = GroupTested(Median()).forgetting(after, "b")
    assert again.tests[0].members == ("withdrawn 1", "withdrawn 2")


def test_a_rule_of_ones_own_forgets_the_entries_under_the_name() -> None:
    memory = {"last": {"a": np.ones(2), "b": np.zeros(2)}, "rounds": [{"a": 1}, ("b", {"a": 2, "c": 3})]}
    after = Median().forgetting(memory, "a")
    assert list(after["last"]) == ["b"]
    assert after["rounds"] == [{}, ("b", {"c": 3})]
    assert list(memory["last"]) == ["a", "b"]


def test_the_command_says_what_was_deleted_and_what_cannot_be(copied: RunFolder) -> None:
    name = an_honest_one(copied)
    done = fedplatform(["withdraw", str(copied.path), name], copied.path.parent)
    assert done.returncode == 0, done.stderr
    assert f"{name} has withdrawn after round 2" in done.stdout
    assert f"deleted: hospitals/{name}.safetensors" in done.stdout
    assert "not deleted, because it is not of one hospital: the weights" in done.stdout
    assert json.loads((copied.path / "withdrawals.json").read_text())[0]["hospital_id"] == name
    refused = fedplatform(["withdraw", str(copied.path.parent / "none"), name], copied.path.parent)
    assert refused.returncode == 1
    assert "holds no run" in refused.stderr
    further = fedplatform(["run", "--resume", "scan", "--runs", ".", "--engine", "local"], copied.path.parent)
    assert further.returncode == 0, further.stderr
    assert f"without {name}, which withdrew after round 2" in further.stdout
    assert "round 4/4" in further.stdout


def test_who_has_withdrawn_is_asked_for_no_statistics_either(copied: RunFolder) -> None:
    name = an_honest_one(copied)
    withdraw(copied, name)
    words = ["data", "statistics", str(copied.path), "--engine", "local"]
    done = fedplatform(words, copied.path.parent)
    assert done.returncode == 0, done.stderr
    assert name not in done.stdout
    told = pd.read_parquet(copied.path / "statistics.parquet")
    assert told["hospital"].nunique() == 4
    assert name not in set(told["hospital"])
    refused = fedplatform([*words, "--hospitals", "3"], copied.path.parent)
    assert refused.returncode == 1
    assert "is a run, and its scans are dealt already" in refused.stderr


def test_a_withdrawal_survives_the_disk(tmp_path: Path) -> None:
    from fedplatform.core.withdrawal import write_withdrawals

    one = Withdrawal("st-mary", 3, "2026-11-30T12:00:00+00:00", ("hospitals/st-mary.safetensors",), ("a", "b"))
    write_withdrawals(tmp_path, [one])
    assert read_withdrawals(tmp_path) == (one,)
