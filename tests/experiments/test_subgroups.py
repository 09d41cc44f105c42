"""Figures by subgroup (sex, age band, scanner): they follow each scan, and show whom a model serves worse."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import fedplatform
from PIL import Image
from sklearn.metrics import roc_auc_score

import fedplatform as fp
from fedplatform.core.messages import Predictions
from fedplatform.data.parquet import ParquetSource
from fedplatform.data.subgroups import column_of
from fedplatform.experiments.experiment import ExperimentError
from fedplatform.learning.site_figures import figures_by_subgroup

QUIET = {"hospitals": 3, "byzantine": 0, "rule": "mean", "partition": "iid", "root_size": 0}


def people(n: int = 240) -> tuple[np.ndarray, np.ndarray, list[str], list[float | None]]:
    """Bright pictures are ill, but for women, in whom it cannot be seen; every fortieth has no age."""
    draw = np.random.default_rng(0)
    labels, women = draw.integers(0, 2, n), draw.random(n) < 0.5
    seen = np.where(women, draw.integers(0, 2, n), labels)
    pictures = draw.integers(0, 100, (n, 16, 16), np.uint8) + (120 * seen).astype(np.uint8)[:, None, None]
    ages = [None if number % 40 == 0 else float(draw.integers(20, 80)) for number in range(n)]
    return pictures, labels, ["female" if woman else "male" for woman in women], ages


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> fp.Result:
    pictures, labels, sex, age = people()
    mine = fp.from_arrays(pictures, labels, groups=np.arange(240), subgroups={"sex": sex, "age": age})
    return fp.run(data=mine, **QUIET, rounds=4, folder=tmp_path_factory.mktemp("people") / "run")


def test_a_model_that_fails_for_women_is_seen_to(trained: fp.Result) -> None:
    found = trained.subgroups
    assert found.loc[("sex", "male"), "auc"] > 0.9
    assert found.loc[("sex", "female"), "auc"] < 0.75
    assert found.loc[("sex", "male"), "auc_low"] > found.loc[("sex", "female"), "auc"]
    assert {"20–39", "40–59", "60–79", "unknown"} >= set(found.loc["age"].index) > {"20–39", "40–59"}


def test_the_figures_are_those_of_the_kept_predictions(trained: fp.Result) -> None:
    table = pd.read_parquet(trained.path / "predictions.parquet")
    women = table[table["subgroup:sex"] == "female"]
    scores = np.stack(women["probabilities"].to_list())[:, 1]
    row = trained.subgroups.loc[("sex", "female")]
    assert row["scans"] == len(women)
    assert row["auc"] == pytest.approx(roc_auc_score(women["label"], scores))
    assert trained.subgroups.loc["sex"]["scans"].sum() == trained.sites.loc["all sites", "scans"]


def test_every_scan_keeps_its_own_word_on_the_way_to_its_hospital(trained: fp.Result) -> None:
    """The picture tells a man's label, so that a mixed-up column would be noticed."""
    _, labels, sex, _ = people()
    for file in sorted((trained.path / "shards").glob("hospital-*.parquet")):
        shard = pq.read_table(file).to_pandas()
        assert shard["subgroup:sex"].tolist() == [sex[row] for row in shard["row"]]
        assert shard["label"].tolist() == [labels[row] for row in shard["row"]]


def test_the_report_has_a_table_by_subgroup(trained: fp.Result) -> None:
    page = str(trained.report())
    assert '<table id="subgroups">' in page
    assert "sex: female" in page
    assert "age: 40–59" in page


def write(path: Path, **more: list[object]) -> Path:
    pictures, labels, sex, age = people(120)
    rows = []
    for picture in pictures:
        sink = io.BytesIO()
        Image.fromarray(picture).save(sink, "PNG")
        rows.append(sink.getvalue())
    columns = {"image": rows, "label": labels.tolist(), "group": list(range(120)), "sex": sex, "age": age, **more}
    pq.write_table(pa.table(columns), path)
    return path


def test_columns_of_a_parquet_file_are_named_by_an_option(tmp_path: Path) -> None:
    file = write(tmp_path / "people.parquet")
    options = ("--hospitals", 2, "--byzantine", 0, "--rule", "mean", "--rounds", 1, "--engine", "local", "--model")
    place = ("small_cnn(width=4)", "--runs", tmp_path, "--name", "r", "--subgroups", "sex,age")
    done = fedplatform([str(word) for word in ("run", file, *options, *place)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(fp.Result.open(tmp_path / "r").subgroups.loc["sex"].index) == {"female", "male"}


def test_numbers_are_taken_in_bands_and_words_as_they_are() -> None:
    column = pa.array([0.0, 19.9, 20.0, None, float("nan"), -3.0])
    assert column_of(column, name="age").to_pylist() == ["0–19", "0–19", "20–39", "unknown", "unknown", "-20–-1"]
    assert column_of(pa.array(["A", "", None]), name="scanner").to_pylist() == ["A", "unknown", "unknown"]
    assert column_of(pa.array([True, False]), name="smoker").to_pylist() == ["yes", "no"]


def test_what_is_no_subgroup_is_one_line(tmp_path: Path) -> None:
    file = write(tmp_path / "people.parquet", name=[f"person {number}" for number in range(120)])
    with pytest.raises(fp.DataError, match="subgroups names columns, got 'race'; it has image, label, group, sex, age"):
        ParquetSource(file, subgroups=("race",)).index()
    with pytest.raises(fp.DataError, match="column 'name' has 120 different values; subgroups are at most 50"):
        ParquetSource(file, subgroups=("name",)).index()
    with pytest.raises(fp.DataError, match="subgroups are columns of a Parquet file, got sex for lesions"):
        fp.run(data="lesions", subgroups="sex", **QUIET)
    with pytest.raises(fp.DataError, match="'sex' is one value a scan"):
        fp.from_arrays(np.zeros((4, 8, 8)), [0, 1, 0, 1], subgroups={"sex": ["female"]})


def test_a_run_without_subgroups_says_so(tmp_path: Path) -> None:
    pictures, labels, _, _ = people(60)
    result = fp.run(data=fp.from_arrays(pictures, labels, groups=np.arange(60)), **QUIET, rounds=1)
    with pytest.raises(ExperimentError, match="no subgroups were named"):
        _ = result.subgroups


def test_a_hospital_that_tells_no_subgroup_is_left_out_of_the_figures() -> None:
    probabilities, labels = np.float32([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])
    told = Predictions("a", "test", probabilities, labels, 0.1, subgroups={"sex": np.array(["female", "male"])})
    found = figures_by_subgroup([told, Predictions("b", "test", probabilities, labels, 0.1)])
    assert [(one.site, one.scans) for one in found["sex"]] == [("female", 1), ("male", 1)]


def test_codes_are_no_quantity_and_stay_as_they_are() -> None:
    assert column_of(pa.array([0, 1, None, 1]), name="sex").to_pylist() == ["0", "1", "unknown", "1"]
    assert column_of(pa.array([1.0, 2.0, float("nan")]), name="scanner").to_pylist() == ["1", "2", "unknown"]
    assert column_of(pa.array([3, 41]), name="age").to_pylist() == ["0–19", "40–59"]
