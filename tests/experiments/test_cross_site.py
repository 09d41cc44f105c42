"""Every hospital's model on every hospital's test scans, beside a slow definition, and as a person sees it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from command_line import fedplatform
from playwright.sync_api import Page
from sklearn.metrics import recall_score, roc_auc_score

import fedplatform as fp
from fedplatform.data.images import to_images
from fedplatform.data.shards import Manifest, Shard
from fedplatform.data.splits import Role
from fedplatform.experiments.cross_site import EVERYBODY, cross_site
from fedplatform.experiments.defence.load import read_classifier, read_experiment
from fedplatform.experiments.engine import InProcessEngine, local_training
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.report import write_report
from fedplatform.experiments.report.site_matrix import short_names
from fedplatform.experiments.run import resume, run
from fedplatform.experiments.run_folder import RunFolder
from fedplatform.learning.training import Trainer


@pytest.fixture(scope="module")
def runs(small: Experiment, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose batch normalisation stays in the hospitals, and one in which nothing does."""
    folder = tmp_path_factory.mktemp("runs")
    for name, algorithm in (("own", "fedbn_p"), ("shared", "fedavg"), ("copies", "ditto")):
        experiment = small.replace(algorithm=algorithm, rule="mean", attack="sign_flip", rounds=1)
        run(experiment, engine=InProcessEngine(), runs=folder, name=name, shards=shards)
    return folder


@pytest.fixture
def copied(runs: Path, tmp_path: Path) -> Path:
    """The first of them, shards and all, to be written in."""
    return Path(shutil.copytree(runs / "own", tmp_path / "own", symlinks=False))


def by_hand(folder: Path, model: str, site: str) -> tuple[float, float]:
    """Balanced accuracy and AUC, scan by scan, with the classifier as it is published and scikit-learn's figures."""
    experiment = read_experiment(folder)
    manifest = Manifest.load(folder / "shards")
    trainer = Trainer(local_training(experiment, manifest))
    classifier = read_classifier(trainer, folder, experiment.hospital_ids()[0] if model == EVERYBODY else model)
    place = experiment.hospital_ids().index(site)
    shard = Shard.open(folder / "shards" / manifest.hospitals[place].file)
    labels = shard.labels(Role.TEST)
    with torch.no_grad():
        scans = to_images(shard.images(Role.TEST))
        logits = torch.cat([classifier(scan[None]) for scan in scans])
    probabilities = torch.softmax(logits, dim=1).numpy()
    recalls = recall_score(labels, probabilities.argmax(axis=1), average=None)
    return float(np.mean(recalls)), float(roc_auc_score(labels, probabilities[:, 1]))


@pytest.mark.parametrize("name", ["own", "shared", "copies"])
def test_each_cell_is_that_models_worth_on_that_sites_test_scans(runs: Path, name: str) -> None:
    table = cross_site(runs / name)
    for model, site in table.index:
        expected = by_hand(runs / name, model, site)
        assert table.loc[(model, site), ["balanced_accuracy", "auc"]].tolist() == pytest.approx(expected, abs=1e-6)


def test_at_home_a_model_is_worth_what_the_last_round_said_bit_for_bit(runs: Path) -> None:
    table = cross_site(runs / "own")
    last = pd.read_parquet(runs / "own" / "hospitals.parquet").set_index("hospital_id")
    honest = last[~last["is_byzantine"]]
    assert len(honest) == 4
    for name, record in honest.iterrows():
        at_home = table.loc[(name, name)]
        assert (at_home["auc"], at_home["balanced_accuracy"]) == (record["auc"], record["balanced_accuracy"])
        assert at_home["scans"] == record["judged"]


def test_rows_and_columns_are_the_honest_hospitals_in_order(runs: Path, small: Experiment) -> None:
    names = [name for name in small.hospital_ids() if name not in small.adversary().hospital_ids]
    matrix = cross_site(runs / "own")["auc"].unstack(sort=False)
    assert (list(matrix.index), list(matrix.columns)) == (names, names)


def test_where_nothing_stays_in_a_hospital_there_is_one_row(runs: Path, tmp_path: Path) -> None:
    assert list(cross_site(runs / "shared")["auc"].unstack().index) == [EVERYBODY]
    page = write_report(runs / "shared").read_text()
    assert "nothing stays in a hospital: all have the same model" in page


def without_lesions(folder: Path, file: str) -> None:
    """Take all test scans of one class out of a shard."""
    path = folder / "shards" / file
    table = pq.read_table(path)
    drop = pc.and_(pc.equal(table.column("role"), "test"), pc.equal(table.column("label"), 1))
    pq.write_table(table.filter(pc.invert(drop)), path)


def test_a_site_that_lacks_a_class_has_no_figure_and_a_dash(copied: Path, tmp_path: Path, page: Page) -> None:
    names = list(cross_site(copied)["auc"].unstack(sort=False).columns)
    without_lesions(copied, f"{names[1]}.parquet")
    table = cross_site(copied)
    matrix = table["auc"].unstack(sort=False)
    assert matrix[names[1]].isna().all()
    assert not matrix.drop(columns=names[1]).isna().any(axis=None)
    page.goto(write_report(copied).as_uri())
    cells = page.locator("#cross-site figure >> nth=0 >> text.figure").all_text_contents()
    assert [cell == "–" for cell in cells] == [name == names[1] for _ in names for name in names]
    assert f"A dash: {names[1]} lacks a class" in page.locator("#cross-site").inner_text()


def test_the_page_shows_every_cell_and_frames_the_own_site(copied: Path, page: Page) -> None:
    matrix = cross_site(copied)["auc"].unstack(sort=False)
    page.goto(write_report(copied).as_uri())
    section = page.locator("#cross-site")
    assert section.locator("figure").count() == 2
    assert section.locator("figure >> nth=0 >> rect.site").count() == matrix.size
    assert section.locator("figure >> nth=0 >> rect.own").count() == len(matrix)
    shown = page.locator("#cross-site figure >> nth=0 >> text.figure").all_text_contents()
    assert shown == [f"{100 * value:.0f}" for value in matrix.to_numpy().reshape(-1)]
    own, others = np.diag(matrix), matrix.to_numpy()[~np.eye(len(matrix), dtype=bool)]
    words = section.inner_text()
    assert f"{100 * own.mean():.1f}% on its own test scans, {100 * others.mean():.1f}% on the others'" in words
    assert f"{100 * others.min():.1f}%" in words


def test_the_command_prints_the_table_and_leaves_it_in_the_folder(copied: Path, tmp_path: Path) -> None:
    done = fedplatform(["cross-site", str(copied), "--device", "cpu"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "AUC, models by sites" in done.stdout
    assert "Balanced accuracy, models by sites" in done.stdout
    kept = pd.read_parquet(copied / "cross_site.parquet")
    assert list(kept.columns) == ["round", "model", "site", "scans", "balanced_accuracy", "auc"]
    first = kept.iloc[0]
    assert f"{first['auc']:.2f}" in done.stdout
    assert 'id="cross-site"' in (copied / "report.html").read_text()


def test_the_table_of_a_model_that_has_learned_more_since_is_not_shown(copied: Path) -> None:
    cross_site(copied)
    resume(RunFolder.reopen(copied.parent, copied.name, rounds=2), engine=InProcessEngine(), rounds=2)
    assert 'id="cross-site"' not in write_report(copied).read_text()
    cross_site(copied)
    assert 'id="cross-site"' in write_report(copied).read_text()


def test_a_result_has_the_matrix_and_its_page_shows_it(copied: Path) -> None:
    result = fp.Result.open(copied)
    matrix = result.cross_site()["auc"].unstack()
    assert matrix.shape == (4, 4)
    assert result.cross_site().equals(result.cross_site())
    assert 'id="cross-site"' in result.report()


def test_where_test_scans_do_not_lie_together_it_is_refused_in_a_sentence(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no finished run"):
        cross_site(tmp_path)
    name = next(iter(cross_site(copied).index))[0]
    (copied / "shards" / f"{name}.parquet").unlink()
    with pytest.raises(ExperimentError, match=f"{name} keeps its scans where it is"):
        cross_site(copied)
    shutil.rmtree(copied / "shards")
    with pytest.raises(ExperimentError, match="holds no shards"):
        cross_site(copied)
    settings = RunFolder(copied).read_settings()
    RunFolder(copied).write_settings({**settings, "outside": ["hospital-00"]})
    with pytest.raises(ExperimentError, match="hospital-00: outside this machine"):
        cross_site(copied)


def test_the_part_of_a_hospital_that_is_missing_is_named(copied: Path) -> None:
    name = next(iter(cross_site(copied).index))[0]
    (copied / "hospitals" / f"{name}.safetensors").unlink()
    with pytest.raises(ExperimentError, match=f"{name}.safetensors is missing"):
        cross_site(copied)


def test_names_are_cut_to_what_tells_them_apart() -> None:
    assert short_names(["hospital-00", "hospital-01"]) == ["00", "01"]
    assert short_names(["st-mary", "charite"]) == ["st-mary", "charite"]
    assert short_names(["clinic-north-1", "clinic-north-2"]) == ["1", "2"]
    assert short_names(["clinic", "clinic-2"]) == ["clinic", "clinic-2"]
    assert short_names(["alone"]) == ["alone"]


def test_many_sites_with_long_names_are_numbered_and_still_fit_a_telephone(
    copied: Path, tmp_path: Path, telephone: Page
) -> None:
    names = [f"university-hospital-of-town-{'abcdefghij'[place % 10] * (1 + place // 10)}" for place in range(30)]
    figures = [0.5 + 0.4 * math.sin(place) ** 2 for place in range(900)]
    rows = [
        {"round": 1, "model": model, "site": site, "scans": 40, "balanced_accuracy": value, "auc": value}
        for (model, site), value in zip(((m, s) for m in names for s in names), figures, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), copied / "cross_site.parquet")
    telephone.goto(write_report(copied).as_uri())
    assert telephone.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert telephone.locator("#cross-site figure >> nth=0 >> rect.site").count() == 900
