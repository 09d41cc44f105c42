"""The benchmark of trust: real tiny grids in real processes, and the figures of its tables against slow versions."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from command_line import fedplatform
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedplatform.attacks.poisoning import OnOff, Sleeper
from fedplatform.core.messages import Evidence, HospitalRecord, HospitalState
from fedplatform.data.error import DataError
from fedplatform.data.partition import BySite, Dirichlet, Iid, LabelSkew, QuantitySkew
from fedplatform.data.shards import Manifest
from fedplatform.data.splits import Role
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import ExperimentError
from fedplatform.experiments.run import partition_data
from fedplatform.experiments.trust_benchmark.cells import (
    ATTACKS,
    CELL,
    DATASETS,
    REFERENCES,
    RULES,
    SPLITS,
    Benchmark,
    Cell,
    partition_of,
)
from fedplatform.experiments.trust_benchmark.figures import FIGURES, Filled, detection, fill_cell, rarity
from fedplatform.experiments.trust_benchmark.fill import Progress, fill
from fedplatform.experiments.trust_benchmark.results import PUBLISHED
from fedplatform.experiments.trust_benchmark.table import markdown, paired_against, worst_cells
from fedplatform.federated.aggregation import Mean, Mixed, NearestNeighbourMixing

TINY: dict[str, object] = {
    "size": 16, "scans": 0, "rounds": 5, "hospitals": 5, "byzantine": 1, "model": "small_cnn(width=2)", "root_size": 20,
}  # fmt: skip

PLUGINS = '''
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedplatform.core.messages import Aggregate
from fedplatform.federated.aggregation import Aggregator, Mean


@dataclass(frozen=True)
class Waiting(Aggregator):
    """Refuses to work until there is a file."""

    file: str

    def aggregate(self, deltas, evidence):
        if not Path(self.file).exists():
            raise RuntimeError("nothing\\nthere yet")
        return Mean()(deltas, evidence)


@dataclass(frozen=True)
class Deaf(Aggregator):
    """Trusts nobody."""

    def aggregate(self, deltas, evidence):
        nobody = np.zeros(len(deltas), np.float32)
        return Aggregate(np.zeros_like(deltas[0]), nobody, np.ones(len(deltas), bool))


@dataclass(frozen=True)
class Deadly(Aggregator):
    """Takes its process along."""

    def aggregate(self, deltas, evidence):
        os._exit(1)


@dataclass(frozen=True)
class Rehearsing(Aggregator):
    """Has rehearsed every attack but one."""

    unseen: str = ""

    def without(self, attack):
        return Rehearsing(attack)

    def aggregate(self, deltas, evidence):
        return Mean()(deltas, evidence)
'''


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny ``mnist.npz`` in the layout of the real one: a bright square in one of two corners."""
    folder = tmp_path_factory.mktemp("digits")
    generator = np.random.default_rng(0)

    def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 2
        drawn = generator.integers(0, 100, (count, 16, 16), dtype=np.uint8)
        drawn[labels == 0, :6, :6] += 120
        drawn[labels == 1, -6:, -6:] += 120
        return drawn, labels

    (x_train, y_train), (x_test, y_test) = pictures(240), pictures(60)
    np.savez(folder / "mnist.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return folder


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(PLUGINS)
    return file


def tiny(**changes: tuple[object, ...]) -> Benchmark:
    whole = Benchmark(
        "mnist",
        Benchmark.settings_of("mnist", TINY),
        rules=("mean", "bulyan", "nnm+median"),
        attacks=("sign_flip", "none"),
        splits=("iid",),
        seeds=(0, 1),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def cell_of(rule: str, attack: str, *, split: str = "iid", changes: Mapping[str, object] = {}) -> Cell:
    return Cell("mnist", split, rule, attack, 0, Benchmark.settings_of("mnist", TINY | changes))


@pytest.fixture(scope="module")
def filled(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame, list[Progress]]:
    """A grid of two seeds filled by two processes: its folder, its table and what the observer heard."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    heard: list[Progress] = []
    frame = fill(tiny(), folder=folder, jobs=2, data_folder=digits, observer=heard.append)
    return folder, frame, heard


def test_every_cell_has_its_row_in_the_order_of_the_table(
    filled: tuple[Path, pd.DataFrame, list[Progress]],
) -> None:
    _, frame, _ = filled
    rows = [
        ("nearest_neighbour", "none"), ("central", "none"), ("honest_only", "none"),
        ("mean", "none"), ("bulyan", "none"), ("nnm+median", "none"),
        ("mean", "sign_flip"), ("bulyan", "sign_flip"), ("nnm+median", "sign_flip"),
    ]  # fmt: skip
    assert list(zip(frame["seed"], frame["rule"], frame["attack"], strict=True)) == [
        (seed, *row) for seed in (0, 1) for row in rows
    ]
    assert list(frame) == [*CELL, "status", "reason", *FIGURES]
    assert set(frame["hospitals"]) == {5}
    assert set(frame["byzantine"]) == {1}
    assert set(frame["rounds"]) == {5}
    done = frame[frame["status"] == "done"]
    assert done["accuracy"].between(0, 1).all()
    federated = done[~done["rule"].isin(REFERENCES)]
    assert (federated["seconds"] >= federated["train_seconds"] + federated["aggregate_seconds"]).all()
    assert federated["worst_hospital_accuracy"].between(0, 1).all()


def test_the_mean_of_the_honest_alone_leaves_out_the_attackers_and_nobody_else() -> None:
    cell = tiny(attacks=("none",), seeds=(0,)).cells()[2]
    experiment = cell.honest_only()
    byzantine = experiment.adversary().hospital_ids
    names = experiment.hospital_ids()
    deltas = np.eye(len(names), dtype=np.float32)
    claims, before = np.ones(len(names), np.int64), np.zeros(len(names), np.float32)
    evidence = Evidence(names, claims, before, torch.Generator())
    step = experiment.rule(deltas, evidence).delta
    assert [name for name, value in zip(names, step, strict=True) if not value] == list(byzantine)
    assert float(step.max()) == pytest.approx(1 / (len(names) - len(byzantine)))


def test_an_infeasible_rule_is_a_row_with_its_reason_and_without_figures(
    filled: tuple[Path, pd.DataFrame, list[Progress]],
) -> None:
    _, frame, _ = filled
    rows = frame[frame["rule"] == "bulyan"]
    assert len(rows) == 4
    assert set(rows["status"]) == {"infeasible"}
    assert set(rows["reason"]) == {"Bulyan needs n >= 4f + 3, got n=5, f=1"}
    assert rows[FIGURES].isna().all(axis=None)
    assert "bulyan against none, sign_flip (4 cells): infeasible, Bulyan needs n >= 4f + 3" in markdown(frame)


def test_the_files_hold_the_table_and_every_hospital_in_every_round(
    filled: tuple[Path, pd.DataFrame, list[Progress]],
) -> None:
    folder, frame, _ = filled
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "trust.parquet"), frame, check_dtype=False)
    published = pd.read_csv(folder / "trust.csv")
    assert list(published) == PUBLISHED
    assert published["accuracy"].tolist() == pytest.approx(frame["accuracy"].round(4).tolist(), nan_ok=True)
    hospitals = pd.concat(map(pd.read_parquet, (folder / "hospitals").iterdir()))
    sizes = hospitals.groupby(["rule", "attack", "seed"]).size()
    assert sizes.to_dict() == {
        (rule, attack, seed): {"central": 5}.get(rule, 25)
        for rule, attacks in {
            "central": ["none"],
            "honest_only": ["none"],
            "mean": tiny().attacks,
            "nnm+median": tiny().attacks,
        }.items()
        for attack in attacks
        for seed in (0, 1)
    }
    assert hospitals[hospitals["attack"] == "sign_flip"].groupby("round_number")["is_byzantine"].mean().eq(0.2).all()
    assert not list(folder.rglob("*.partial*"))


def test_the_observer_hears_of_every_cell_and_of_the_time_left(
    filled: tuple[Path, pd.DataFrame, list[Progress]],
) -> None:
    _, _, heard = filled
    finished = [progress for progress in heard if progress.last is not None]
    assert [progress.done for progress in finished] == list(range(1, 19))
    assert {progress.total for progress in finished} == {18}
    assert finished[-1].seconds_left == 0
    assert finished[7].seconds_left > 0
    assert {progress.last.cell.name for progress in finished if progress.last} == {cell.name for cell in tiny().cells()}


def test_a_second_call_does_nothing_twice_and_adds_what_is_new(
    filled: tuple[Path, pd.DataFrame, list[Progress]], digits: Path
) -> None:
    folder, before, _ = filled
    heard: list[Progress] = []
    more = tiny(rules=("mean", "nnm+median", "krum"), seeds=(0,))
    frame = fill(more, folder=folder, jobs=0, data_folder=digits, observer=heard.append)
    assert [p.last.cell.rule for p in heard if p.last] == ["krum", "krum"]
    assert len(frame) == len(before) + 2
    merged = before.merge(frame, on=CELL, suffixes=("", "_after"))
    assert len(merged) == len(before)
    for figure in FIGURES:  # the seconds among them: a cell that was run again would differ there
        assert merged[figure].tolist() == pytest.approx(merged[f"{figure}_after"].tolist(), rel=0, abs=0, nan_ok=True)


def test_a_folder_of_another_benchmark_is_refused_in_one_line(
    filled: tuple[Path, pd.DataFrame, list[Progress]], digits: Path
) -> None:
    folder, _, _ = filled
    other = replace(tiny(), settings=Benchmark.settings_of("mnist", TINY | {"rounds": 7}))
    with pytest.raises(ExperimentError, match="was begun with rounds=5, got 7; go on with the same settings"):
        fill(other, folder=folder, jobs=0, data_folder=digits)


def test_a_benchmark_goes_on_after_an_update_that_brought_a_setting(
    filled: tuple[Path, pd.DataFrame, list[Progress]], tmp_path: Path, digits: Path
) -> None:
    folder = tmp_path / "begun_before"
    shutil.copytree(filled[0], folder)
    file = folder / "benchmark.yaml"
    held = yaml.safe_load(file.read_text())
    assert held.pop("transport") == "exact"
    file.write_text(yaml.safe_dump(held, sort_keys=False))
    heard: list[Progress] = []
    feasible = tiny(rules=("mean", "nnm+median"))
    fill(feasible, folder=folder, jobs=0, data_folder=digits, observer=heard.append)
    assert not [progress.last for progress in heard if progress.last], "every cell was filled before"
    changed = replace(tiny(), settings=Benchmark.settings_of("mnist", TINY | {"transport": "half"}))
    with pytest.raises(ExperimentError, match="was begun with transport='exact', got 'half'"):
        fill(changed, folder=folder, jobs=0, data_folder=digits)


def test_a_data_set_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no mnist\.npz in"):
        fill(tiny(), folder=tmp_path / "new", jobs=0, data_folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_split_that_the_data_cannot_have_is_infeasible_and_the_rest_goes_on(digits: Path, tmp_path: Path) -> None:
    grid = tiny(rules=("mean",), attacks=("none",), splits=("site", "iid"), seeds=(0,))
    frame = fill(grid, folder=tmp_path / "new", jobs=0, data_folder=digits).set_index(["split", "rule"])
    assert frame.loc[("site", "mean"), "status"] == "infeasible"
    assert "needs as many sites as hospitals" in str(frame.loc[("site", "mean"), "reason"])
    assert frame.loc[("iid", "mean"), "status"] == "done"


def test_a_failed_cell_is_recorded_and_tried_again(digits: Path, plugins: Path, tmp_path: Path) -> None:
    late = tmp_path / "late"
    grid = tiny(rules=(f"{plugins}:Waiting(file='{late}')", "mean"), attacks=("none",), seeds=(0,))
    first = fill(grid, folder=tmp_path / "new", jobs=0, data_folder=digits)
    assert first["status"].tolist() == ["done", "done", "done", "failed", "done"]
    assert first["reason"].tolist() == ["", "", "", "RuntimeError: nothing there yet", ""]
    late.touch()
    second = fill(grid, folder=tmp_path / "new", jobs=0, data_folder=digits)
    assert second["status"].tolist() == ["done"] * 5
    assert second["reason"].tolist() == [""] * 5
    assert second["accuracy"][3] == second["accuracy"][4]


def test_a_cell_in_which_nothing_was_learned_has_no_figures(digits: Path, plugins: Path, tmp_path: Path) -> None:
    grid = tiny(rules=(f"{plugins}:Deaf", "mean"), attacks=("none",), seeds=(0,))
    frame = fill(grid, folder=tmp_path / "new", jobs=0, data_folder=digits)
    deaf = frame.iloc[3]
    assert deaf["status"] == "without effect"
    assert deaf["reason"].startswith("nothing was learned, for no round had an effect: the rule trusts nobody")
    assert deaf[FIGURES].isna().all()
    assert f"{plugins}:Deaf against none (1 cells): without effect, nothing was learned" in markdown(frame)


def test_a_worker_that_dies_is_said_in_one_line_and_what_was_done_is_kept(
    digits: Path, plugins: Path, tmp_path: Path
) -> None:
    grid = tiny(rules=("mean", f"{plugins}:Deadly"), attacks=("none",), seeds=(0,))
    with pytest.raises(ExperimentError, match="a worker process died"):
        fill(grid, folder=tmp_path / "new", jobs=1, data_folder=digits)
    kept = pd.read_parquet(tmp_path / "new" / "trust.parquet")
    assert kept["rule"].tolist() == ["nearest_neighbour", "central", "honest_only", "mean"]


@pytest.fixture(scope="module")
def skewed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of a skewed split."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    partition_data(cell_of("mean", "none", split="dirichlet_0.5").without_rule(), folder, data_folder=digits)
    return folder


def test_a_cell_has_the_figures_of_the_same_experiment_run_in_full(skewed: Path, tmp_path: Path) -> None:
    cell = cell_of("multi_krum", "sign_flip", split="dirichlet_0.5")
    found = fill_cell(cell, skewed, tmp_path)
    assert found.status == "done", found.reason
    with InProcessEngine().launch(cell.experiment(), skewed, state_folder=tmp_path / "state") as federation:
        last = list(federation.reports())[-1]
    assert (found.figures["accuracy"], found.figures["macro_f1"]) == (last.accuracy, last.macro_f1)
    byzantine = cell.experiment().adversary().hospital_ids
    own = {r.hospital_id: r.accuracy for r in last.hospitals if r.hospital_id not in byzantine and r.accuracy >= 0}
    assert found.figures["worst_hospital_accuracy"] == min(own.values())
    train = {
        shard.file.removesuffix(".parquet"): np.array(shard.counts[Role.TRAIN])
        for shard in Manifest.load(skewed).hospitals
    }
    everybody = sum(train.values()) / sum(counts.sum() for counts in train.values())
    rarest = max(own, key=lambda name: float(np.abs(train[name] / train[name].sum() - everybody).sum()))
    assert found.figures["rarest_hospital_accuracy"] == own[rarest]
    assert list(tmp_path.iterdir()) == [tmp_path / "state"]


def test_rarity_is_zero_for_everybodys_mix_and_half_apart_for_two_opposites() -> None:
    assert rarity(np.array([[10, 10], [3, 3]])).tolist() == [0.0, 0.0]
    assert rarity(np.array([[8, 0], [0, 8]])).tolist() == [0.5, 0.5]
    assert rarity(np.array([[9, 1], [0, 10], [9, 1]])).argmax() == 1


def test_an_unknown_rule_and_an_unknown_attack_are_infeasible(skewed: Path, tmp_path: Path) -> None:
    assert "did you mean 'median'" in fill_cell(cell_of("medain", "none"), skewed, tmp_path).reason
    wrong = fill_cell(cell_of("mean", "sign_flop"), skewed, tmp_path)
    assert (wrong.status, "did you mean 'sign_flip'" in wrong.reason) == ("infeasible", True)


def test_a_rule_that_rehearses_never_rehearses_the_attack_under_test(plugins: Path) -> None:
    assert cell_of(f"{plugins}:Rehearsing", "label_flip").experiment().rule.unseen == "label_flip"
    behind = cell_of(f"nnm+{plugins}:Rehearsing", "alie(z=1.5)").experiment().rule
    assert isinstance(behind, Mixed)
    assert behind.rule.unseen == "alie"
    assert Mean().without("alie") == Mean()
    mixed = Mixed((NearestNeighbourMixing(f=1),), Mean())
    assert mixed.without("alie") == mixed


def test_every_cell_of_a_seed_trains_the_same_network_on_the_same_data() -> None:
    experiments = [cell_of(rule, attack).experiment() for rule in ("mean", "krum") for attack in ("none", "alie")]
    same = [{k: v for k, v in e.settings().items() if k not in ("rule", "attack")} for e in experiments]
    assert all(settings_ == same[0] for settings_ in same)
    assert same[0]["algorithm"] == "fedbn_p"


def test_a_cut_off_table_is_a_smaller_table() -> None:
    cells = tiny(splits=("iid", "dirichlet_0.1"), attacks=("alie", "none", "ipm"), seeds=(4, 2)).cells()
    assert [cell.seed for cell in cells] == [4] * 24 + [2] * 24
    assert [cell.split for cell in cells[:24]] == ["iid"] * 12 + ["dirichlet_0.1"] * 12
    assert [cell.attack for cell in cells[:12]] == ["none"] * 6 + ["alie"] * 3 + ["ipm"] * 3
    assert [cell.rule for cell in cells[6:9]] == ["mean", "bulyan", "nnm+median"]


@pytest.mark.parametrize("dataset", list(DATASETS))
def test_every_data_set_has_settings_that_can_run(dataset: str) -> None:
    found = Benchmark.settings_of(dataset, {})
    assert found["data"] == dataset
    assert found["algorithm"] == "fedbn_p"
    assert not {"rule", "attack", "partition", "seed"} & set(found)
    assert len(Benchmark(dataset, found).cells()) == 3 * len(SPLITS) * (len(REFERENCES) + len(RULES) * len(ATTACKS))


@pytest.mark.parametrize(
    ("name", "partition"),
    [
        ("iid", Iid()),
        ("dirichlet_0.5", Dirichlet(0.5)),
        ("dirichlet_0.1", Dirichlet(0.1)),
        ("label_skew_0.9", LabelSkew(0.9)),
        ("quantity_skew_1", QuantitySkew(1.0)),
        ("label_skew", LabelSkew()),
        ("site", BySite()),
    ],
)
def test_splits_have_short_names(name: str, partition: object) -> None:
    assert partition_of(name) == partition


@pytest.mark.parametrize("name", ["dirichlt_0.5", "iid_3", "dirichlet_x", "", "_", "0.5"])
def test_an_unknown_split_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ExperimentError, match=r"unknown split .* known: iid, dirichlet"):
        partition_of(name)


def record(number: int, *, attacker: bool, flagged: bool) -> HospitalRecord:
    state = HospitalState.HOSTILE if flagged else HospitalState.REPORTED
    return HospitalRecord(number, "h", state, "", attacker, 10, 1.0, 1.0, 0.1, 0.1, 0.1, 0.5, 0.5)


def test_detection_counts_hospitals_in_rounds_after_the_third() -> None:
    early = [record(number, attacker=False, flagged=True) for number in (1, 2, 3)]
    late = [
        *[record(4, attacker=True, flagged=True)] * 3,
        *[record(5, attacker=True, flagged=False)] * 1,
        *[record(6, attacker=False, flagged=True)] * 2,
        *[record(7, attacker=False, flagged=False)] * 6,
    ]
    assert detection([*early, *late], attack=None) == {
        "detection_f1": pytest.approx(6 / 9),
        "detection_precision": 0.6,
        "detection_recall": 0.75,
        "false_alarm_rate": 0.25,
    }


def test_a_sleeper_is_honest_until_its_patience_ends() -> None:
    rounds = [record(number, attacker=True, flagged=number >= 6) for number in range(1, 9)]
    figures = detection(rounds, attack=Sleeper(patience=6))
    assert figures["detection_recall"] == 1.0
    assert figures["false_alarm_rate"] == 1 / 3  # it was shut out in round 6, in which it did nothing yet
    assert figures["detection_precision"] == 2 / 3


def test_an_on_off_attacker_can_only_be_found_while_it_lies() -> None:
    rounds = [record(number, attacker=True, flagged=number % 2 == 0) for number in range(4, 10)]
    figures = detection(rounds, attack=OnOff(honest=1, lying=1))
    assert (figures["detection_recall"], figures["false_alarm_rate"]) == (1.0, 0.0)


def test_without_a_lie_there_is_no_detection_to_speak_of() -> None:
    figures = detection(
        [record(4, attacker=False, flagged=False), record(5, attacker=False, flagged=True)], attack=None
    )
    assert np.isnan([figures[name] for name in ("detection_f1", "detection_precision", "detection_recall")]).all()
    assert figures["false_alarm_rate"] == 0.5


def test_a_rule_that_flags_nobody_has_an_f1_of_zero() -> None:
    figures = detection(
        [record(4, attacker=True, flagged=False), record(4, attacker=False, flagged=False)], attack=None
    )
    assert (figures["detection_f1"], figures["detection_recall"], figures["false_alarm_rate"]) == (0.0, 0.0, 0.0)
    assert np.isnan(figures["detection_precision"])


def table(accuracy: Mapping[tuple[str, str, int], float], **changes: object) -> pd.DataFrame:
    """A frame of finished cells: (rule, attack, seed) to accuracy."""
    rows = [
        Filled(replace(cell_of(rule, attack), seed=seed), "done", figures={"accuracy": a, "macro_f1": a}).row()
        for (rule, attack, seed), a in accuracy.items()
    ]
    return pd.DataFrame(rows).assign(**changes)


accuracies = st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=12, max_size=12)


@settings(deadline=None, max_examples=40)
@given(accuracies, accuracies)
def test_the_paired_comparison_is_the_paired_t_test_of_the_worst_attacks(
    ours: list[float], theirs: list[float]
) -> None:
    cells = {
        (rule, attack, seed): values[3 * seed + number]
        for rule, values in (("trust", ours), ("krum", theirs))
        for number, attack in enumerate(("none", "alie", "ipm"))
        for seed in range(4)
    }
    (row,) = paired_against(table(cells), "trust").to_dict("records")
    worst = [[min(values[3 * seed : 3 * seed + 3]) for seed in range(4)] for values in (ours, theirs)]
    differences = np.subtract(*worst)
    assert (row["rule"], row["seeds"]) == ("krum", 4)
    assert row["difference"] == pytest.approx(differences.mean())
    if np.ptp(differences) < 1e-9:  # no spread: nothing to test
        return
    test = stats.ttest_rel(*worst)
    assert row["p"] == pytest.approx(test.pvalue)
    interval = test.confidence_interval(0.95)
    assert row["difference"] - row["half_width"] == pytest.approx(interval.low)
    assert row["difference"] + row["half_width"] == pytest.approx(interval.high)


def test_seeds_in_which_a_rule_missed_an_attack_are_not_paired() -> None:
    cells = {
        (rule, attack, seed): 0.5 for rule in ("trust", "krum") for attack in ("none", "alie") for seed in range(3)
    }
    cells |= {("trust", "alie", 0): 0.4, ("trust", "alie", 1): 0.3}
    del cells[("krum", "alie", 2)]
    (row,) = paired_against(table(cells), "trust").to_dict("records")
    assert row["seeds"] == 2
    assert row["difference"] == pytest.approx(-0.15)


def test_one_seed_has_a_difference_and_no_interval() -> None:
    cells = {("trust", "none", 0): 0.9, ("krum", "none", 0): 0.7, ("central", "none", 0): 0.1}
    (row,) = paired_against(table(cells), "trust").to_dict("records")
    assert row["difference"] == pytest.approx(0.2)
    assert np.isnan([row["half_width"], row["p"]]).all()
    assert "| krum | +20.0 | – | – | 1 |" in markdown(table(cells))


def test_equal_rules_have_no_p_and_a_constant_difference_has_no_doubt() -> None:
    cells = {("trust", "none", seed): 0.75 for seed in (0, 1)} | {("mean", "none", seed): 0.75 for seed in (0, 1)}
    (equal,) = paired_against(table(cells), "trust").to_dict("records")
    assert (equal["difference"], equal["half_width"], np.isnan(equal["p"])) == (0.0, 0.0, True)
    cells |= {("mean", "none", seed): 0.5 for seed in (0, 1)}
    (constant,) = paired_against(table(cells), "trust").to_dict("records")
    assert (constant["difference"], constant["half_width"], constant["p"]) == (0.25, 0.0, 0.0)


def test_nothing_is_paired_with_a_rule_that_was_not_run() -> None:
    assert paired_against(table({("mean", "none", 0): 0.9}), "trust").empty


@settings(deadline=None, max_examples=40)
@given(accuracies)
def test_the_worst_cell_is_the_attack_with_the_lowest_mean(values: list[float]) -> None:
    places = [
        (rule, attack, seed) for rule in ("mean", "krum") for attack in ("none", "alie", "ipm") for seed in (0, 1)
    ]
    cells = dict(zip(places, values, strict=True))
    found = worst_cells(table({**cells, ("nearest_neighbour", "none", 0): 0.0})).set_index("rule")
    assert list(found.index) == ["mean", "krum"]
    for rule in ("mean", "krum"):
        means = {a: (cells[rule, a, 0] + cells[rule, a, 1]) / 2 for a in ("none", "alie", "ipm")}
        assert found.loc[rule, "accuracy"] == pytest.approx(min(means.values()))
        assert means[str(found.loc[rule, "attack"])] == pytest.approx(min(means.values()))


def test_settings_never_share_a_pair_or_a_worst_cell() -> None:
    few = table({("trust", "none", 0): 0.9, ("krum", "none", 0): 0.8}, split="iid")
    many = table({("trust", "none", 0): 0.5, ("krum", "none", 0): 0.7}, split="dirichlet_0.1")
    both = pd.concat([few, many])
    assert paired_against(both, "trust")["difference"].tolist() == pytest.approx([0.1, -0.2])
    assert worst_cells(both)["accuracy"].tolist() == [0.9, 0.8, 0.5, 0.7]


def command(digits: Path, runs: Path, *words: str) -> list[str]:
    return [
        sys.executable, "-m", "fedplatform", "bench", "trust", "--dataset", "mnist", "--data-folder", str(digits),
        "--runs", str(runs), "--name", "t", "--size", "16", "--scans", "0", "--hospitals", "5", "--byzantine", "1",
        "--model", "small_cnn(width=2)", "--splits", "iid", "--seeds", "0", "--jobs", "1", *words,
    ]  # fmt: skip


def begun(words: list[str]) -> subprocess.Popen[str]:
    """The command after its first cell."""
    started = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What a shell starts in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert started.stdout is not None
    assert started.stdout.readline().startswith("1/5  iid, nearest_neighbour against none, seed 0: accuracy")
    return started


@pytest.mark.slow
def test_a_killed_command_leaves_no_worker_behind(digits: Path, tmp_path: Path) -> None:
    started = begun(command(digits, tmp_path, "--rules", "mean,krum", "--attacks", "none", "--rounds", "6"))
    started.kill()
    started.wait()
    for _ in range(600):
        if not left_of(started.pid):
            break
        time.sleep(0.1)
    assert not left_of(started.pid)
    started.communicate()


def left_of(session: int) -> list[int]:
    """The processes of a session that still do something."""
    listed = subprocess.run(["ps", "-s", str(session), "-o", "pid=,stat="], capture_output=True, text=True, check=False)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "Z" not in line.split()[1]]


def test_ctrl_c_leaves_whole_files_and_the_same_command_goes_on(digits: Path, tmp_path: Path) -> None:
    words = command(digits, tmp_path, "--rules", "mean,krum", "--attacks", "none", "--rounds", "6")
    started = begun(words)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does: to the command and its workers
    _, complaint = started.communicate(timeout=120)
    assert (started.returncode, complaint.count("\n")) == (130, 1), complaint
    assert complaint.startswith("fedplatform: stopped")
    kept = pd.read_parquet(tmp_path / "t" / "trust.parquet")
    assert "nearest_neighbour" in set(kept["rule"])
    again = fedplatform([*words[3:], "--jobs", "0"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert "nearest_neighbour against none" not in again.stdout
    assert "5/5  iid, krum against none, seed 0: accuracy" in again.stdout
    assert "| rule | none | worst |" in (tmp_path / "t" / "trust.md").read_text()


@pytest.fixture
def complain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], digits: Path, tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """Run the console command with some words more, and hand back its status and its complaint."""
    from fedplatform.cli import main

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fedplatform", *command(digits, tmp_path, *words)[3:]])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--dataset", "mnits"], 1, "no settings for data set 'mnits'; did you mean 'mnist'?"),
        (["--splits", "diriclet_0.1"], 1, "unknown split 'diriclet_0.1'"),
        (["--splits", "dirichlet_-1"], 1, "Dirichlet needs concentration > 0, got -1.0"),
        (["--byzantine", "5"], 1, "at least one hospital must be honest, got 5 Byzantine of 5 hospitals"),
        (["--seeds", "0,one"], 2, "seeds are whole numbers, got '0,one'"),
        (["--ruels", "mean"], 2, "did you mean '--rules'?"),
    ],
)
def test_what_cannot_be_asked_for_costs_one_line_and_leaves_nothing(
    complain: Callable[..., tuple[int, str]], tmp_path: Path, words: list[str], status: int, said: str
) -> None:
    got, complaint = complain(*words)
    assert got == status
    assert said in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "t").exists()


def test_help_teaches_with_examples(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from fedplatform.cli import main

    monkeypatch.setattr(sys, "argv", ["fedplatform", "bench", "trust", "--help"])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert "fedplatform bench trust --dataset mnist" in shown
    for name in (*RULES[:12], *ATTACKS):
        assert name in shown.replace("\n  ", " ")
