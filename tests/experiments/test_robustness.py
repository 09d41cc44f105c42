"""The evaluation of a defence, its certificates, its pictures and its benchmark, all on a run of the smallest size."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from tiny_defence import DEFENCE, RUN

from fedplatform.attacks.evasion import EVASION_ATTACKS
from fedplatform.cli import fedplatform
from fedplatform.core.files import alone_in
from fedplatform.core.specification import SpecificationError
from fedplatform.data.shards import Manifest, Shard
from fedplatform.data.splits import Role
from fedplatform.defence.presets import GATED
from fedplatform.defence.threats import AT_DETECTORS, USUAL_TIERS, Budget, OutOfReachError, check_within
from fedplatform.experiments.baselines import NEAREST_NEIGHBOUR
from fedplatform.experiments.defence.attack import judge_scans, spread_evenly
from fedplatform.experiments.defence.benchmark import PUBLISHED, DefenceBenchmark, fill, train
from fedplatform.experiments.defence.certify import certified_accuracy, certify_scans
from fedplatform.experiments.defence.evaluate import Progress, evaluate
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.experiments.defence.pictures import write_example_pictures
from fedplatform.experiments.defence.plan import EASY_TIERS, Plan, tasks_of
from fedplatform.experiments.experiment import ExperimentError

PLAN = Plan(
    defences=(NEAREST_NEIGHBOUR, "no_defence", "purify_all", "fast", "full"),
    epsilons=(8 / 255,),
    scans=12,
    hard_scans=4,
    budget=Budget(steps=2, eot=2, queries=4),
)
IN_WORDS = [
    "--defences", ",".join(PLAN.defences), "--epsilon", "8/255", "--scans", "12", "--hard-scans", "4",
    "--steps", "2", "--eot", "2", "--queries", "4", "--jobs", "1",
]  # fmt: skip
KEYS = ["defence", "tier"]


@pytest.fixture(scope="module")
def evaluated(defended: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, attacked. Nobody writes here; copy it."""
    folder = tmp_path_factory.mktemp("evaluated") / "spots"
    shutil.copytree(defended, folder)
    evaluate(folder, PLAN, jobs=0)
    return folder


@pytest.fixture
def copied(evaluated: Path, tmp_path: Path) -> Path:
    shutil.copytree(evaluated, tmp_path / "spots")
    return tmp_path / "spots"


@pytest.fixture(scope="module")
def cells(evaluated: Path) -> pd.DataFrame:
    return pd.read_parquet(evaluated / "evaluation.parquet").set_index(KEYS)


@pytest.fixture(scope="module")
def scans(evaluated: Path) -> pd.DataFrame:
    return pd.read_parquet(evaluated / "scans.parquet")


def tables(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("scans.parquet", "evaluation.parquet", "evaluation.yaml")]


def test_every_defence_meets_every_tier_that_makes_sense_on_as_many_scans_as_asked(cells: pd.DataFrame) -> None:
    wanted = {
        (defence, tier): 12 if tier in EASY_TIERS else 4
        for tier in USUAL_TIERS
        for defence in PLAN.defences
        if (defence != NEAREST_NEIGHBOUR or tier in EASY_TIERS) and (tier not in AT_DETECTORS or defence in GATED)
    }
    assert cells["n"].to_dict() == wanted


def test_what_nobody_attacks_is_answered_as_in_daily_use(evaluated: Path, scans: pd.DataFrame) -> None:
    run = DefendedRun(evaluated)
    for name in run.tested:
        parts = run.hospital(name)
        places = spread_evenly(len(parts.test[1]), 6)
        for defence in ("no_defence", "purify_all", "full"):
            rows = scans[(scans["tier"] == "T0") & (scans["hospital_id"] == name) & (scans["defence"] == defence)]
            assert rows["row"].tolist() == parts.test_rows[places].tolist()
            served = parts.defended(defence).diagnose(parts.test[0][places])
            for found, diagnosis in zip(rows.itertuples(), served, strict=True):
                assert (found.answer, found.flagged, found.depth) == (
                    diagnosis.label,
                    diagnosis.flagged,
                    diagnosis.depth,
                )
                assert found.referred == diagnosis.referred
                if defence == "full":
                    assert found.score == pytest.approx(diagnosis.anomaly_score, abs=1e-4)


def test_a_cell_is_the_mean_of_its_scans(cells: pd.DataFrame, scans: pd.DataFrame) -> None:
    for key, group in scans.groupby(KEYS):
        cell, right = cells.loc[key], group["answer"] == group["label"]
        assert cell["accuracy"] == pytest.approx(right.mean())
        assert cell["wrong"] == pytest.approx((~right & ~group["referred"]).mean())
        assert cell["flagged"] == pytest.approx(group["flagged"].mean())
        assert cell["accuracy_worst"] <= cell["accuracy_mean"] + 1e-9
    whole = scans[scans["defence"] == "full"]
    clean, attacked = (whole.loc[whole["tier"] == tier, "score"] for tier in ("T0", "T2"))
    found = roc_auc_score([0] * len(clean) + [1] * len(attacked), [*clean, *attacked])
    assert cells.loc[("full", "T2"), "auc"] == pytest.approx(found)


def test_who_has_no_detector_has_no_figure_of_detection(cells: pd.DataFrame, scans: pd.DataFrame) -> None:
    assert cells["auc"].notna().to_dict() == {key: key[0] in GATED and key[1] != "T0" for key in cells.index}
    assert (cells["tpr_at_5"].notna() == [defence in GATED for defence, _ in cells.index]).all()
    assert (scans["score"].notna() == scans["defence"].isin(GATED)).all()


def test_noise_is_drawn_anew_where_the_attacker_knows_of_it(scans: pd.DataFrame) -> None:
    shares = scans[(scans["defence"] == "purify_all") & ~scans["tier"].isin(EASY_TIERS)]["mean"] * 10
    np.testing.assert_allclose(shares, shares.round(), atol=1e-6)
    assert scans[scans["tier"].isin(EASY_TIERS)]["mean"].isin([0, 1]).all()


def test_purification_is_counted(cells: pd.DataFrame) -> None:
    assert cells.loc[("no_defence", "T2"), "evaluations"] == 0
    assert cells.loc[("purify_all", "T2"), "evaluations"] == DEFENCE["copies"]
    for (defence, _), cell in cells.iterrows():
        if defence in GATED:  # the full defence looks at every scan twice
            assert cell["evaluations"] == pytest.approx((defence == "full") + cell["flagged"] * DEFENCE["copies"])


def test_the_look_up_answers_with_the_nearest_training_scan(
    evaluated: Path, cells: pd.DataFrame, scans: pd.DataFrame
) -> None:
    shards = evaluated / "shards"
    opened = [Shard.open(shards / shard.file) for shard in Manifest.load(shards).hospitals]
    known = np.concatenate([shard.images(Role.TRAIN) for shard in opened]).astype(float)
    labels = np.concatenate([shard.labels(Role.TRAIN) for shard in opened])
    rows = scans[(scans["defence"] == NEAREST_NEIGHBOUR) & (scans["tier"] == "T0")].set_index("row")["answer"]
    for shard in opened:
        for row, picture in zip(shard.rows(Role.TEST).tolist(), shard.images(Role.TEST), strict=True):
            if row in rows.index:
                assert rows[row] == labels[np.square(known - picture).sum(axis=(1, 2, 3)).argmin()]
    own = cells.loc[NEAREST_NEIGHBOUR]
    assert (own["accuracy_worst"] == own["accuracy"]).all(), "a look-up draws nothing, so its worst is its usual"


def test_a_second_call_attacks_nothing_anew(copied: Path) -> None:
    before, told = tables(copied), list[Progress]()
    again = evaluate(copied, PLAN, jobs=0, observer=told.append)
    assert tables(copied) == before
    assert [(progress.done, progress.last) for progress in told] == [(told[0].total, None)]
    pd.testing.assert_frame_equal(again, pd.read_parquet(copied / "evaluation.parquet"))


@pytest.mark.slow
def test_a_call_that_was_killed_goes_on_to_the_same_table(copied: Path, evaluated: Path) -> None:
    keys = ["tier", "epsilon", "hospital_id", "defence"]
    frame = pd.read_parquet(copied / "scans.parquet")
    tasks = frame[keys].drop_duplicates()
    kept = frame.merge(tasks.iloc[::2], on=keys)
    assert 0 < len(kept) < len(frame)
    kept.sample(frac=1, random_state=0).to_parquet(copied / "scans.parquet", index=False)
    (copied / "evaluation.parquet").unlink()
    told: list[Progress] = []
    evaluate(copied, PLAN, jobs=0, observer=told.append)
    assert len(told) == 1 + len(tasks) - len(tasks.iloc[::2])
    for name in ("scans.parquet", "evaluation.parquet"):
        found, due = (pd.read_parquet(folder / name).drop(columns="milliseconds") for folder in (copied, evaluated))
        pd.testing.assert_frame_equal(found, due, check_exact=True)


@pytest.mark.parametrize(
    "other",
    [replace(PLAN, scans=14), replace(PLAN, budget=replace(PLAN.budget, steps=3))],
    ids=["other scans", "other steps"],
)
def test_another_budget_never_mixes_with_the_first(copied: Path, other: Plan) -> None:
    before = tables(copied)
    with pytest.raises(ExperimentError, match=r"evaluation.yaml was begun with \w+=\w+, got \w+") as refusal:
        evaluate(copied, other, jobs=0)
    assert "\n" not in str(refusal.value)
    assert tables(copied) == before


def test_what_was_found_of_one_defence_never_stands_for_another(copied: Path) -> None:
    sensor = copied / "defence/sensor.safetensors"
    weights = load_file(sensor)
    save_file({name: value + 1e-3 for name, value in weights.items()}, sensor)
    before = (copied / "scans.parquet").read_bytes()
    with pytest.raises(ExperimentError, match="was trained anew since its evaluation was begun; remove"):
        evaluate(copied, PLAN, jobs=1)
    assert (copied / "scans.parquet").read_bytes() == before


def test_a_plan_without_a_single_attack_is_refused_and_leaves_nothing(defended: Path) -> None:
    before = sorted(defended.rglob("*"))
    with pytest.raises(ExperimentError, match="no tier of T4 can be tried on nearest_neighbour"):
        evaluate(defended, Plan(defences=(NEAREST_NEIGHBOUR,), tiers=("T4",)), jobs=0)
    assert sorted(defended.rglob("*")) == before


@pytest.mark.parametrize("epsilons", [(), (0.0,), (-0.1,), (8.0,), (float("nan"),)])
def test_an_epsilon_is_a_distance_in_pixels(epsilons: tuple[float, ...]) -> None:
    with pytest.raises(ExperimentError, match="8/255"):
        Plan(epsilons=epsilons)


def test_what_is_named_twice_is_attacked_once() -> None:
    once = Plan(defences=("full",), tiers=("T0", "T2"), epsilons=(0.01,))
    twice = Plan(defences=("full", "full"), tiers=("T0", "T2", "T0"), epsilons=(0.01, 0.01))
    assert tasks_of(twice, ["a", "b"]) == tasks_of(once, ["a", "b"])
    assert len(tasks_of(once, ["a", "b"])) == 4


def test_an_attack_that_goes_too_far_stops_the_evaluation() -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    check_within((images + 0.1).clamp(0, 1), images, 0.1)
    for rogue in (images * 0.8, (images + 0.1), images - 0.1, images + float("nan")):
        with pytest.raises(OutOfReachError, match="moved a pixel"):
            check_within(rogue, images, 0.1)
    with pytest.raises(OutOfReachError, match=r"made \(1, 1, 1, 2\) of scans \(1, 1, 1, 3\)"):
        check_within(images[..., :2], images, 0.1)


@given(st.integers(0, 60), st.integers(1, 60))
def test_chosen_scans_are_spread_from_the_first_to_the_last(count: int, wanted: int) -> None:
    places = spread_evenly(count, wanted).tolist()
    assert len(set(places)) == len(places) == min(count, wanted)
    assert all(0 <= place < count for place in places)
    steps = [after - before for before, after in pairwise(places)]
    assert not steps or max(steps) - min(steps) <= 1
    assert len(places) < 2 or (places[0], places[-1]) == (0, count - 1)


def test_the_worst_of_the_draws_counts_a_scan_only_where_all_are_right(defended: Path) -> None:
    parts = DefendedRun(defended).hospital("hospital-00")
    deep = parts.settings.model_copy(update={"least_depth": 200, "most_depth": 200, "copies": 1})
    everything = replace(parts, settings=deep).defended("purify_all")
    images, labels = parts.test[0][:16], parts.test[1][:16]
    judged = judge_scans(everything, images, labels, seed=0, draws=10)
    assert any(0 < row["mean"] < 1 for row in judged), "noise of this depth must now and then change an answer"
    assert [row["worst"] for row in judged] == [row["mean"] == 1 for row in judged]
    assert judged[0]["depth"] == 200


def test_certificates_are_written_and_an_abstention_has_no_radius(defended: Path, tmp_path: Path) -> None:
    folder = tmp_path / "spots"
    shutil.copytree(defended, folder)
    with pytest.raises(ExperimentError, match="covers sigma above 0 and up to 0"):
        certify_scans(folder, sigmas=[0.1, 5.0], scans=8, samples=12, jobs=0)
    assert not (folder / "certificates.parquet").exists()
    found = certify_scans(folder, sigmas=[0.02, 0.3], scans=8, samples=12, jobs=0)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "certificates.parquet"), found)
    assert found.groupby("sigma").size().tolist() == [8, 8]
    silent = found["answer"] == -1
    assert 0 < silent.sum() < len(found)
    assert (found.loc[silent, "radius"] == 0).all()
    assert (found.loc[~silent, "radius"] > 0).all()
    shares = certified_accuracy(found, [0, 0.01]).set_index("sigma")
    for sigma, group in found.groupby("sigma"):
        right = group["answer"] == group["label"]
        assert shares.loc[sigma, "0"] == right.mean()
        assert shares.loc[sigma, "0.01"] == (right & (group["radius"] >= 0.01)).mean()


def test_pictures_show_the_tier_that_is_named(defended: Path, tmp_path: Path) -> None:
    folder = tmp_path / "spots"
    shutil.copytree(defended, folder)
    file = write_example_pictures(folder, defence="full", tier="T2", epsilon=16 / 255, budget=PLAN.budget)
    with np.load(file) as found:
        shown = dict(found)
    shape = shown["clean"].shape
    assert shape == (6, 1, 16, 16)
    assert shown["attacked"].shape == shown["purified"].shape == shape
    assert shown["anomaly"].shape == (6, 16, 16)
    for name in (
        "labels", "answers_undefended", "answers_defended", "flagged", "scores", "thresholds", "depths",
    ):  # fmt: skip
        assert shown[name].shape == (6,)
    assert 0 < np.abs(shown["attacked"] - shown["clean"]).max() <= 16 / 255 + 1e-6
    assert (shown["flagged"] == (shown["scores"] > shown["thresholds"])).all()
    assert (shown["tier"], shown["classes"].tolist()) == ("T2", ["0", "1"])
    fooled = shown["answers_undefended"] != shown["labels"]
    assert fooled.tolist() == sorted(fooled, reverse=True)
    assert fooled.any()
    assert {path.name for path in folder.glob(".*")} <= {".lock"}, "nothing half-written"


def test_the_command_prints_the_table_and_writes_the_page(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tables(copied)
    fedplatform(["evaluate", str(copied), *IN_WORDS], standalone_mode=False)
    shown = capsys.readouterr().out
    assert all(tier in shown for tier in ("T0", "T3", "T5"))
    assert "evaluation.html" in shown
    assert "<html" in (copied / "evaluation.html").read_text()
    assert (copied / "pictures.npz").is_file()
    assert tables(copied) == before, "8/255 on the command line is 8/255"


NAMED = (
    "noise", "fgsm", "pgd(steps=1)", "momentum_pgd(steps=1)", "apgd(steps=1)", "fab(steps=1)",
    "carlini_wagner(steps=1, searches=1)", "square(queries=2)", "hop_skip_jump(queries=20, probes=2)",
    "detector_aware(steps=1, searches=1)", "flood(steps=1)",
)  # fmt: skip


@pytest.mark.slow
def test_every_attack_is_reached_by_its_name(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [name.partition("(")[0] for name in NAMED] == list(EVASION_ATTACKS)
    asked = [word for name in NAMED for word in ("--attack", name)]
    fedplatform(
        ["evaluate", str(copied), *IN_WORDS, "--defences", "no_defence,full", "--tiers", "T0", *asked],
        standalone_mode=False,
    )
    page = (copied / "evaluation.html").read_text()
    assert "evaluation.html" in capsys.readouterr().out
    cells = pd.read_parquet(copied / "evaluation.parquet")
    for name in NAMED:
        defences = set(cells.loc[cells["tier"] == name, "defence"])
        assert defences == ({"full"} if name.startswith(("detector_aware", "flood")) else {"no_defence", "full"})
        assert name.replace("_", " ") in page
    assert "under the strongest attacker of T1 to T5, apgd(steps=1)" in page
    assert (cells.loc[cells["tier"].isin(NAMED), "n"] == 4).all()


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ("fba", "unknown attack 'fba'; did you mean 'fab'?"),
        ("fab(steps=2.5)", "steps is a whole number, got 2.5"),
        ("fab(epsilon=0.5)", "epsilon is what the evaluation says, got 0.5"),
        ("apgd(loss='dlr')", "no loss is called 'dlr'"),
    ],
)
def test_an_attack_that_cannot_be_built_is_refused_before_anything_is_attacked(attack: str, words: str) -> None:
    with pytest.raises(SpecificationError) as refusal:
        Plan(attacks=(attack,))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


ROGUE = """
from dataclasses import dataclass

from fedplatform.attacks.evasion import EvasionAttack


@dataclass(frozen=True)
class Rogue(EvasionAttack):
    epsilon: float

    def perturb(self, target, images, labels, *, generator):
        return (images + 2 * self.epsilon).clamp(0, 1)
"""


def test_an_attack_of_a_users_own_that_goes_too_far_stops_evaluation_and_pictures(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(ROGUE)
    rogue = f"{tmp_path / 'mine.py'}:Rogue"
    with pytest.raises(OutOfReachError, match="moved a pixel"):
        evaluate(copied, replace(PLAN, tiers=("T0",), defences=("no_defence",), attacks=(rogue,)), jobs=0)
    with pytest.raises(OutOfReachError, match="moved a pixel"):
        write_example_pictures(copied, defence="full", tier=rogue, epsilon=8 / 255, budget=PLAN.budget)


def test_two_evaluations_at_once_do_not_write_over_each_other(copied: Path) -> None:
    before = tables(copied)
    with (
        alone_in(copied, what="the other"),
        pytest.raises(ExperimentError, match=r"an evaluation of .* is going on in another process"),
    ):
        evaluate(copied, PLAN, jobs=0)
    assert tables(copied) == before


def test_the_benchmark_trains_both_kinds_once_and_attacks_them(spots: Path, tmp_path: Path) -> None:
    benchmark = DefenceBenchmark(
        "lesions",
        seeds=(0,),
        changes={**RUN, "data": str(spots), "rounds": 1, "local_epochs": 1, "augmentation": "none"},
        defence={**DEFENCE, "autoencoder_rounds": 1, "purifier_rounds": 1, "sensor_rounds": 1, "tuning_rounds": 1},
        plan=Plan(("no_defence", "full"), ("T0", "T2"), (8 / 255,), 4, 2, PLAN.budget),
    )
    told: list[str] = []
    table, scans = fill(benchmark, folder=tmp_path, jobs=0, announce=told.append)
    assert len(scans) == 8 * 4
    assert told == ["seed 0 is trained", "attacking plain-seed0", "attacking adversarial-seed0"]
    published = pd.read_csv(tmp_path / "defence.csv")
    assert list(published) == PUBLISHED
    assert len(published) == len(table) == 8
    assert published["adversarial_training"].tolist() == [False] * 4 + [True] * 4
    assert (published["n"] == 4).all()
    pairs = pd.read_csv(tmp_path / "pairs.csv")
    assert pairs[["adversarial_training", "tier", "defence", "n"]].values.tolist() == [
        [trained, tier, "no_defence", 4] for trained in (False, True) for tier in ("T0", "T2")
    ]
    plain, adversarial = (tmp_path / f"{kind}-seed0" for kind in ("plain", "adversarial"))
    for name, same in (("purifier", True), ("autoencoder", True), ("sensor", False), ("tuned/global", False)):
        contents = [(folder / "defence" / f"{name}.safetensors").read_bytes() for folder in (plain, adversarial)]
        assert (contents[0] == contents[1]) == same
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    train(benchmark, 0, tmp_path, None)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")} == before
    with pytest.raises(ExperimentError, match="no training is called 'plane'; did you mean 'plain'"):
        replace(benchmark, kinds=("plane",))
    with pytest.raises(ExperimentError, match="rounds=1, got 2"):
        fill(replace(benchmark, changes={**benchmark.changes, "rounds": 2}), folder=tmp_path, jobs=0)
