"""Faults of training that users of such tools have met, each as what is right."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import fault_networks
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from fault_inputs import picture, png, write_arrays, write_folder, write_parquet
from fault_networks import NanOnce, write_rule
from fault_studies import Pace
from PIL import Image
from safetensors.torch import load_file

from actors.cluster import security
from fedplatform.cli import main
from fedplatform.core import specification
from fedplatform.core.messages import HospitalRecord, HospitalState, RoundReport
from fedplatform.data.arrays import ArraySource
from fedplatform.data.error import DataError
from fedplatform.data.folders import FolderSource
from fedplatform.data.index import Index
from fedplatform.data.parquet import ParquetSource
from fedplatform.data.pictures import decode
from fedplatform.data.shards import Manifest
from fedplatform.data.splits import Role, assign_roles
from fedplatform.experiments.baselines import CENTRAL, NEAREST_NEIGHBOUR
from fedplatform.experiments.callbacks import Callback
from fedplatform.experiments.comparison import Grid, compare
from fedplatform.experiments.engine import InProcessEngine, cohort_plan
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.report import comparison_markdown
from fedplatform.experiments.run import partition_data, run
from fedplatform.federated.aggregation import RULES
from fedplatform.federated.cohort import CohortPlan
from fedplatform.learning.training import Trainer
from tune.phase import Budget
from tune.runner import Resources
from tune.runner import run as run_study
from tune.trial import State, Trial

ROOT = Path(__file__).parents[2]
TINY: Mapping[str, object] = {
    "size": 16,
    "partition": "iid",
    "hospitals": 3,
    "byzantine": 0,
    "rule": "mean",
    "rounds": 2,
    "root_size": 0,
    "model": "small_cnn(width=4)",
    "algorithm": "fedavg",
    "batch_size": 8,
}
OPTIONS = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", value)]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the console command in this process and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["fedplatform", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


class Dealt(Callback):
    """Keeps how many scans were dealt."""

    def __init__(self, counts: list[int]) -> None:
        self._counts = counts

    def dealing(self, done: int, total: int) -> None:
        self._counts.append(done)


def tiny(data: Path, **changes: object) -> Experiment:
    """Three hospitals, two rounds, a network of a thousand weights, all of it in a second."""
    return Experiment.from_settings({**TINY, "data": str(data), **changes})


def network(name: str) -> str:
    """One of the users' networks as `run` takes it."""
    return f"{fault_networks.__name__}:{name}"


@dataclass(frozen=True, eq=False)
class Trained:
    """What a federation in this process came to: its rounds and the weights at the end, by name."""

    reports: tuple[RoundReport, ...]
    weights: Mapping[str, np.ndarray]

    def of(self, hospital: str) -> list[HospitalRecord]:
        """A hospital's record in every round."""
        return [row for report in self.reports for row in report.hospitals if row.hospital_id == hospital]


def trainer_of(experiment: Experiment, *, num_classes: int = 2) -> Trainer:
    return Trainer(experiment.local_training(channels=1, num_classes=num_classes))


def train(experiment: Experiment, folder: Path) -> Trained:
    """Deal the scans and run all rounds, everything in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = folder / "shards"
    if not shards.exists():
        partition_data(experiment, shards)
    with InProcessEngine().launch(experiment, shards, state_folder=folder / "hospitals") as federation:
        reports = tuple(federation.reports())
        outcome = federation.outcome()
    return Trained(reports, trainer_of(experiment).layout.unflatten(outcome.weights))


def dealt(experiment: Experiment, folder: Path) -> CohortPlan:
    """Deal the scans, and say how to bring up each hospital."""
    partition_data(experiment, folder / "shards")
    return cohort_plan(experiment, folder / "shards", state_folder=folder / "hospitals")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of two classes, 20 scans in each."""
    return write_folder(tmp_path_factory.mktemp("scans") / "mine")


def forget(folder: Path) -> None:
    """Forget what was imported from a user's files in ``folder``, as a new process would."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(f"{folder}/"):
            del sys.modules[name]
            if module in specification.plugin_modules:
                specification.plugin_modules.remove(module)


@pytest.fixture
def plugins(tmp_path: Path) -> Iterator[Path]:
    """A folder for a user's own files; what was imported from it is forgotten afterwards."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    yield folder
    forget(folder)


# Comparisons


def judged(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a comparison that are no references."""
    return table[~table["rule"].isin((NEAREST_NEIGHBOUR, CENTRAL))]


def grid(scans: Path, *, rules: tuple[str, ...], attacks: tuple[str, ...], **changes: object) -> Grid:
    return Grid(tiny(scans, **{"hospitals": 5, "byzantine": 1, "rounds": 1, **changes}), rules, attacks, seeds=(0,))


def test_two_settings_of_a_rule_and_two_of_an_attack_are_four_cells(scans: Path, tmp_path: Path) -> None:
    asked = grid(
        scans,
        rules=("trimmed_mean(f=1)", "trimmed_mean(f=2)"),
        attacks=("sign_flip(scale=1)", "sign_flip(scale=20)"),
    )
    table = judged(compare(asked, engine=InProcessEngine(), folder=tmp_path / "table"))
    assert len(table) == 4


def test_another_strength_asked_for_later_is_another_cell(scans: Path, tmp_path: Path) -> None:
    for strength in (20, 1):
        asked = grid(scans, rules=("mean",), attacks=(f"sign_flip(scale={strength})",))
        table = compare(asked, engine=InProcessEngine(), folder=tmp_path / "table")
    assert len(judged(table)) == 2


def test_a_rule_that_was_corrected_does_not_keep_the_cells_of_its_first_draft(
    scans: Path, tmp_path: Path, plugins: Path
) -> None:
    file, diary, refusal = plugins / "rules.py", tmp_path / "diary", ""
    for draft in ("first draft", "corrected"):
        write_rule(file, draft=draft, diary=diary)
        try:
            compare(
                grid(scans, rules=(f"{file}:Own",), attacks=("none",), byzantine=0),
                engine=InProcessEngine(),
                folder=tmp_path / "table",
            )
        except ExperimentError as error:
            refusal = str(error)
        forget(plugins)  # the second command is another process
    # Both drafts are also tried on random updates before anybody trains.
    asked = Counter(diary.read_text().splitlines())
    assert asked["corrected"] >= asked["first draft"] or re.search(r"\brules?\b", refusal)


# Numbers that are none


@pytest.mark.parametrize("algorithm", ["fedbn_p", "fedbn", "fedper", "silo_bn", "fedavg", "ditto"])
def test_a_hospital_with_one_nan_batch_is_back_in_the_next_round(scans: Path, tmp_path: Path, algorithm: str) -> None:
    NanOnce.calls.clear()
    trained = train(tiny(scans, algorithm=algorithm, augmentation=network("NanOnce")), tmp_path)
    first, second = trained.of("hospital-00")
    assert first.state is not HospitalState.REPORTED
    assert second.state is HospitalState.REPORTED
    assert np.isfinite(second.loss)
    assert np.isfinite(trained.reports[-1].loss)


TOO_FAST = {"learning_rate": 1e12, "model": network("Plain")}


def test_a_run_in_which_no_round_had_an_effect_fails_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, scans: Path
) -> None:
    options = [*OPTIONS, "--model", TOO_FAST["model"], "--learning-rate", TOO_FAST["learning_rate"]]
    status = call(monkeypatch, "run", "lesions", "--data", scans, *options, "--engine", "local", "--runs", tmp_path)
    said = capsys.readouterr().err
    assert status == 1
    assert said.count("\n") == 1


def test_a_cell_in_which_nothing_was_learned_is_a_dash(scans: Path, tmp_path: Path) -> None:
    several_steps = 2  # after a single one the weights are huge, and finite
    asked = grid(scans, rules=("mean",), attacks=("none",), byzantine=0, batch_size=several_steps, **TOO_FAST)
    table = compare(asked, engine=InProcessEngine(), folder=tmp_path / "table")
    line = next(line for line in comparison_markdown(table).splitlines() if line.startswith("| mean"))
    assert "–" in line


# Classes of other names


def test_a_hospital_that_names_its_classes_otherwise_is_refused(tmp_path: Path) -> None:
    words = {"st-mary": ("healthy", "tumour"), "charite": ("Befund", "Normal")}
    for hospital, classes in words.items():
        data = write_folder(tmp_path / "scans" / hospital, classes, per_class=6)
        partition_data(tiny(data, hospitals=1), tmp_path / hospital)
    places = [{"name": name, "shard": str(tmp_path / name / "hospital-00.parquet")} for name in words]
    experiment = tiny(tmp_path / "scans" / "st-mary", hospitals=places)
    plan = cohort_plan(experiment, tmp_path / "st-mary", state_folder=tmp_path / "state", places=experiment.places)
    assert plan.open_shard("st-mary").classes == ("healthy", "tumour")
    with pytest.raises(DataError, match="Befund"):
        plan.open_shard("charite")


# Networks of users


def test_frozen_layers_stay_as_they_are(scans: Path, tmp_path: Path) -> None:
    plan = dealt(tiny(scans, model=network("Frozen")), tmp_path)
    trainer = Trainer(plan.training)
    before = {name: value.clone() for name, value in trainer.model.named_parameters() if not value.requires_grad}
    assert len(before) == 2
    plan.admit("hospital-00", trainer).train(trainer.initial_weights, 1)
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(after[name].requires_grad for name in before)


@pytest.mark.parametrize("name", ["RunningScale", "Spectral"])
def test_no_buffer_goes_from_one_hospital_to_the_next(scans: Path, tmp_path: Path, name: str) -> None:
    plan = dealt(tiny(scans, model=network(name)), tmp_path)
    lent, own = Trainer(plan.training), Trainer(plan.training)
    plan.admit("hospital-00", lent).train(lent.initial_weights, 1)
    after_another = plan.admit("hospital-01", lent).train(lent.initial_weights, 1)
    elsewhere = replace(plan, state_folder=tmp_path / "elsewhere")
    alone = elsewhere.admit("hospital-01", own).train(own.initial_weights, 1)
    assert np.array_equal(after_another.delta, alone.delta)


@pytest.mark.parametrize("name", ["RunningScale", "Spectral"])
def test_a_run_keeps_every_buffer_of_its_network(scans: Path, tmp_path: Path, name: str) -> None:
    experiment = tiny(scans, model=network(name), rounds=1)
    folder, _ = run(experiment, engine=InProcessEngine(), runs=tmp_path)
    kept = {key for file in folder.path.rglob("*.safetensors") for key in load_file(file)}
    assert set(trainer_of(experiment).model.state_dict()) - {"mean", "std"} <= kept


def test_a_network_that_needs_the_row_major_layout_is_trained(scans: Path, tmp_path: Path) -> None:
    trained = train(tiny(scans, model=network("View")), tmp_path)
    assert np.isfinite(trained.reports[-1].loss)


@pytest.mark.parametrize("name", ["TwoAnswers", "Lazy", "Double", "Half", "Tied"])
def test_a_network_is_trained_or_refused_in_one_line_before_scans_are_dealt(
    scans: Path, tmp_path: Path, name: str
) -> None:
    scans_dealt: list[int] = []
    losses, refusal = [], ""
    try:
        _, reports = run(
            tiny(scans, model=network(name), rounds=1),
            engine=InProcessEngine(),
            runs=tmp_path,
            callbacks=[Dealt(scans_dealt)],
        )
        losses = [report.loss for report in reports]
    except ExperimentError as error:
        refusal = str(error)
    if refusal:
        assert not scans_dealt
        assert "\n" not in refusal
    else:
        assert np.isfinite(losses).all()


@pytest.mark.parametrize("algorithm", ["fedavg", "ditto"])
def test_dropout_draws_the_same_in_every_run_of_a_seed(scans: Path, tmp_path: Path, algorithm: str) -> None:
    experiment = tiny(scans, model=network("Drops"), algorithm=algorithm)
    first, second = (train(experiment, tmp_path / name) for name in ("first", "second"))
    assert [row.loss for row in first.of("hospital-00")] == [row.loss for row in second.of("hospital-00")]
    for name, value in first.weights.items():
        assert np.array_equal(value, second.weights[name])


# Hospitals of one scan


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites, one of them with a single training scan and two test scans."""
    return write_sites(tmp_path_factory.mktemp("sites"), {"big": (12, 3, 4), "middle": (8, 3, 4)})


def write_sites(folder: Path, counts: Mapping[str, tuple[int, int, int]]) -> Path:
    """Sites of so many training, validation and test scans of each class, and one with a single training scan."""
    parts = ("train", "val", "test")
    rows: list[tuple[str, str, int]] = []
    for site, numbers in counts.items():
        rows += [(site, part, label) for part, n in zip(parts, numbers, strict=True) for label in (0, 1) * n]
    rows += [("tiny", "train", 0), ("tiny", "val", 0), ("tiny", "test", 1), ("tiny", "test", 1)]
    return write_parquet(
        folder / "sites.parquet",
        [
            {"image": png(label, n), "label": ("healthy", "tumour")[label], "site": site, "split": part, "group": n}
            for n, (site, part, label) in enumerate(rows)
        ],
    )


def smallest(trained: Trained) -> HospitalRecord:
    """The last record of the hospital that trained on the fewest scans."""
    return min(trained.reports[-1].hospitals, key=lambda row: row.num_examples)


def test_an_update_that_was_trained_on_nothing_has_no_vote(sites: Path, tmp_path: Path) -> None:
    record = smallest(train(tiny(sites, partition="site"), tmp_path))
    assert record.num_examples <= 1
    assert record.weight == 0


def test_an_update_that_was_trained_on_nothing_goes_into_no_masked_sum(tmp_path: Path) -> None:
    data = write_sites(tmp_path, {"big": (12, 3, 4), "middle": (8, 3, 4), "other": (8, 3, 4)})
    experiment = tiny(data, partition="site", hospitals=4, quorum=1, privacy="grouped(size=2)")
    reports = train(experiment, tmp_path / "run").reports
    (alone,) = [record for record in reports[-1].hospitals if record.judged == 2]
    assert alone.state is HospitalState.MALFORMED
    assert "two or more" in alone.reason


def test_a_hospital_that_cannot_answer_is_recorded_with_the_reason(sites: Path, tmp_path: Path) -> None:
    trained = train(tiny(sites, partition="site", algorithm="fedbn", model=network("EndsInBatchNorm")), tmp_path)
    assert len(trained.reports) == 2
    assert "its evaluation failed: ValueError" in smallest(trained).reason
    assert [record.judged for record in trained.reports[-1].hospitals] == [8, 8, 0]


# Hospitals that lack a class


def write_uneven_sites(file: Path, *, findings: bool) -> Path:
    """Sites with all classes, without one, with one alone, and with a single training scan; classes are a, b, c.

    With ``findings`` they are no classes but findings: the site with one class alone has scans of no finding.
    """
    mixes = {"all": (0, 1, 2), "lacks": (0, 1), "alone": (0,), "single": (2,)}
    rows: list[dict[str, object]] = []
    for site, mix in mixes.items():
        parts = {"train": 1, "test": 2} if site == "single" else {"train": 12, "val": 4, "test": 6}
        for part, count in parts.items():
            for number in range(count):
                label, n = mix[number % len(mix)], len(rows)
                row: dict[str, object] = {"image": png(label, n), "site": site, "split": part, "group": n}
                if findings:
                    row |= {f"label_{name}": int(label == place) for place, name in ((1, "b"), (2, "c"))}
                else:
                    row["label"] = "abc"[label]
                rows.append(row)
    return write_parquet(file, rows)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedbn_p"])
@pytest.mark.parametrize("task", ["multiclass", "multilabel", "ordinal"])
def test_a_hospital_that_lacks_a_class_or_has_one_alone_or_a_single_scan_takes_part(
    tmp_path: Path, task: str, algorithm: str
) -> None:
    data = write_uneven_sites(tmp_path / "sites.parquet", findings=task == "multilabel")
    experiment = tiny(data, hospitals=4, partition="site", task=task, algorithm=algorithm)
    folder, reports = run(experiment, engine=InProcessEngine(), runs=tmp_path)
    last = {record.hospital_id: record for record in reports[-1].hospitals}
    assert len(reports) == 2
    assert np.isfinite([reports[-1].loss, reports[-1].auc, reports[-1].balanced_accuracy]).all()
    assert sorted(record.num_examples for record in last.values()) == [0, 12, 12, 12]
    for (
        record
    ) in last.values():  # a single scan is no batch to train on, and its hospital judges the model all the same
        assert (record.state is HospitalState.REPORTED) == (record.weight > 0) == (record.num_examples > 0)
        assert record.judged >= 2
    assert all(np.isfinite([record.accuracy, record.loss]).all() for record in last.values())
    assert "report.html" in {file.name for file in folder.path.iterdir()}


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "ordinal"])
def test_balanced_weights_make_no_number_infinite_where_a_class_is_missing(tmp_path: Path, task: str) -> None:
    name = "binary_cross_entropy" if task == "multilabel" else "cross_entropy"
    data = write_uneven_sites(tmp_path / "sites.parquet", findings=task == "multilabel")
    objective = f"{name}(class_weights=balanced)"
    experiment = tiny(data, hospitals=4, partition="site", task=task, objective=objective)
    _, reports = run(experiment, engine=InProcessEngine(), runs=tmp_path)
    trained_on = [record for record in reports[-1].hospitals if record.num_examples]
    assert np.isfinite([record.train_loss for record in trained_on]).all()
    assert np.isfinite(reports[-1].loss)


# Labels


@pytest.mark.parametrize("codes", [(1, 2), (174, 4021)])
def test_the_labels_that_occur_in_an_npz_file_are_the_classes(tmp_path: Path, codes: tuple[int, int]) -> None:
    source = ArraySource(write_arrays(tmp_path / "codes.npz", codes))
    assert source.classes == tuple(map(str, codes))
    assert set(source.index()["label"].to_pylist()) == {0, 1}


@pytest.mark.parametrize("codes", [(1, 2), (174, 4021)])
def test_the_labels_that_occur_in_a_parquet_file_are_the_classes(tmp_path: Path, codes: tuple[int, int]) -> None:
    rows = [{"image": png(label, n), "label": codes[label]} for label in (0, 1) for n in range(3)]
    source = ParquetSource(write_parquet(tmp_path / "codes.parquet", rows))
    assert source.classes == tuple(map(str, codes))
    assert set(source.index()["label"].to_pylist()) == {0, 1}


def test_a_report_on_many_classes_stays_small(tmp_path: Path) -> None:
    data = write_arrays(tmp_path / "many.npz", range(150), per_class=9)
    folder, _ = run(tiny(data, rounds=1), engine=InProcessEngine(), runs=tmp_path)
    assert (folder.path / "report.html").stat().st_size < 1_000_000


@pytest.mark.parametrize("labels", [[0.0, 1.0, 0.5], [[0, 1], [1], [0, 1]]], ids=["fractions", "uneven lists"])
def test_labels_that_are_no_whole_numbers_are_refused_in_one_line(tmp_path: Path, labels: list[object]) -> None:
    rows = [{"image": png(n % 2, n), "label": label} for n, label in enumerate(labels)]
    source = ParquetSource(write_parquet(tmp_path / "labels.parquet", rows))
    with pytest.raises(DataError, match="label"):
        Index.of(source)


# Folders


@pytest.mark.parametrize("patients", [False, True])
@pytest.mark.parametrize("words", [("train", "test"), ("train", "val", "test"), ("Training", "Testing")])
def test_folders_of_a_published_split_are_no_classes(tmp_path: Path, words: tuple[str, ...], patients: bool) -> None:
    for number, word in enumerate(words):
        root = write_folder(tmp_path / "chest" / word, ("NORMAL", "PNEUMONIA"), per_class=3, seed=number)
        if patients:
            for file in list(root.rglob("*.png")):
                patient = file.parent / f"{word}-{file.parent.name}-{file.stem}"
                patient.mkdir()
                file.rename(patient / "scan.png")
    source = FolderSource(tmp_path / "chest")
    assert source.classes == ("NORMAL", "PNEUMONIA")
    index = Index.of(source)
    assert index.splits is not None
    assert len(set(index.splits)) == len(words)


def test_a_patient_behind_a_symbolic_link_is_not_lost(tmp_path: Path) -> None:
    elsewhere = write_folder(tmp_path / "elsewhere", ("patient-7",), per_class=2)
    data = write_folder(tmp_path / "scans", per_class=3)
    (data / "tumour" / "patient-7").symlink_to(elsewhere / "patient-7", target_is_directory=True)
    for label in ("healthy", "tumour"):
        (data / label / "patient-1").mkdir()
        for file in list((data / label).glob("*.png")):
            file.rename(data / label / "patient-1" / file.name)
    found, refusal = 0, ""
    try:
        found = FolderSource(data).index().num_rows
    except DataError as error:
        refusal = str(error)
    assert found == 8 or "patient-7" in refusal


@pytest.mark.parametrize(("target", "says"), [("nowhere", "leads nowhere"), (".", "leads back")])
def test_a_link_that_leads_to_no_scans_is_refused(tmp_path: Path, target: str, says: str) -> None:
    data = write_folder(tmp_path / "scans", per_class=3)
    (data / "tumour" / "link").symlink_to(target)
    with pytest.raises(DataError, match=f"tumour/link: a link that {says}"):
        FolderSource(data).index()


def test_a_picture_is_read_as_its_exif_orientation_says() -> None:
    upright = np.zeros((8, 16), np.uint8)
    upright[:4, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: to be shown turned by 90 degrees clockwise
    file = io.BytesIO()
    Image.fromarray(np.rot90(upright).copy()).save(file, "PNG", exif=exif)
    assert np.array_equal(decode(file.getvalue(), name="turned.png"), upright)


def test_one_hot_pixel_does_not_blacken_a_deep_scan() -> None:
    tissue = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16)
    hot = tissue.copy()
    hot[3, 3] = 65535
    cold, warm = (decode(_deep_png(values), name="deep.png").astype(int) for values in (tissue, hot))
    assert np.abs(cold - warm).mean() < 10


def _deep_png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def test_no_page_of_a_tiff_file_is_lost_without_a_word(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "scans", per_class=3)
    pages = [Image.fromarray(picture(1, number)) for number in range(10, 14)]
    pages[0].save(data / "tumour" / "volume.tiff", save_all=True, append_images=pages[1:])
    found, refusal = 0, ""
    try:
        found = sum(map(len, FolderSource(data).images(size=16, channels=1)))
    except DataError as error:
        refusal = str(error)
    assert found == 6 + 4 or "volume.tiff" in refusal


def test_the_first_picture_does_not_decide_whether_all_are_grey(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "scans", per_class=3)
    for file in sorted(data.rglob("*.png"))[1:]:
        grey = np.asarray(Image.open(file))
        Image.fromarray(np.stack([grey, grey // 2, grey // 3], axis=-1)).save(file)
    assert FolderSource(data).channels == 3


def test_an_audit_names_every_broken_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = write_folder(tmp_path / "scans", per_class=6)
    for label, number in (("healthy", 2), ("tumour", 4)):
        file = data / label / f"{number:04d}.png"
        file.write_bytes(file.read_bytes()[:60])
    status = call(monkeypatch, "data", "audit", data)
    captured = capsys.readouterr()
    said = "".join((captured.out + captured.err).split())
    assert status == 1
    assert "healthy/0002.png" in said
    assert "tumour/0004.png" in said


def test_a_site_with_one_class_can_be_dealt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [{"image": png(0, n), "label": 0} for n in range(12)]
    table = pa.Table.from_pandas(pd.DataFrame(rows)).replace_schema_metadata({"classes": "healthy,tumour"})
    pq.write_table(table, tmp_path / "site.parquet")
    options = [*OPTIONS, "--hospitals", 1]
    status = call(
        monkeypatch, "data", "partition", "lesions", tmp_path / "shards", "--data", tmp_path / "site.parquet", *options
    )
    assert (status, capsys.readouterr().err) == (0, "")
    assert Manifest.load(tmp_path / "shards").classes == ("healthy", "tumour")


# What is said


def test_fedbn_on_a_network_without_batch_normalisation_says_so(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    scans: Path,
) -> None:
    options = [*OPTIONS, "--rounds", 1, "--algorithm", "fedbn", "--model", network("Plain"), "--engine", "local"]
    with caplog.at_level(logging.WARNING):
        call(monkeypatch, "run", "lesions", "--data", scans, *options, "--runs", tmp_path)
    captured = capsys.readouterr()
    assert "batch normalisation" in " ".join((captured.out + captured.err + caplog.text).split())


def test_a_file_of_ones_own_imports_its_neighbour(plugins: Path) -> None:
    (plugins / "neighbouring_parts.py").write_text("SHARE = 0.25\n")
    (plugins / "own_rules.py").write_text(
        "from neighbouring_parts import SHARE\nclass Own:\n    def __init__(self):\n        self.share = SHARE\n"
    )
    rule = specification.build(f"{plugins / 'own_rules.py'}:Own", RULES, what="aggregation rule", given={})
    assert rule.share == 0.25


def test_the_range_that_a_network_of_ones_own_gets_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", "--help") == 0
    told = capsys.readouterr().out + (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    assert re.search(r"-2(\.0)? to \+?2|\[-2(\.0)?, ?2(\.0)?\]|- 0?\.5\) / 0?\.25", " ".join(told.split()))


def test_an_address_in_the_environment_that_is_no_clusters_is_told_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, scans: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")  # of the dashboard, as other tools of Ray take it
    status = call(monkeypatch, "run", "lesions", "--data", scans, *OPTIONS, "--runs", tmp_path)
    said = capsys.readouterr().err
    assert status == 1
    assert "RAY_ADDRESS" in said


def test_a_home_that_cannot_be_written_is_told_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, read_only: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(read_only))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises((OSError, security.ClusterError)) as refused:
        security.require_token(make=True)
    assert re.search("HOME|RAY_AUTH_TOKEN", str(refused.value))


# Searches: last, because the Ray of this file lives until its end


def folds(file: Path, *, number: int) -> Path:
    rows = [{"image": png(label, n), "label": label, "fold": n % number} for label in (0, 1) for n in range(15)]
    return write_parquet(file, rows)


@pytest.mark.parametrize("number", [3, 5])
def test_few_folds_leave_validation_scans(tmp_path: Path, number: int) -> None:
    index = Index.of(ParquetSource(folds(tmp_path / "folds.parquet", number=number)))
    roles = assign_roles(index, seed=0, root_size=0)
    assert set(roles) == {Role.TRAIN, Role.VALIDATION, Role.TEST}


def test_a_search_without_a_measured_trial_has_no_winner() -> None:
    trials = [
        Trial("search", n, {"learning_rate": rate}, state=State.FINISHED, steps=({"accuracy": float("nan")},))
        for n, rate in enumerate((0.01, 0.05))
    ]
    assert Pace("base.yaml").choose(trials) is None


@pytest.mark.usefixtures("ray_here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside Ray Tune's own code
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_search_whose_base_was_corrected_keeps_no_trial_of_the_old_one(scans: Path, tmp_path: Path) -> None:
    base, refusal = tmp_path / "base.yaml", ""
    for rounds, trials in ((1, 1), (2, 2)):
        base.write_text(yaml.safe_dump({**TINY, "data": str(scans), "rounds": rounds}))
        try:
            ledger = run_study(
                Pace(str(base)),
                Budget(trials),
                folder=tmp_path / "runs" / "pace",
                name="pace",
                resources=Resources(jobs=1),
            )
        except ExperimentError as error:
            refusal = str(error)
    steps = {trial.name: len(trial.steps) for trial in ledger}
    assert re.search(r"\bbase\b", refusal) or set(steps.values()) == {2}
