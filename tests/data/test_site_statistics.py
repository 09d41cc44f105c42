"""What a hospital tells of its scans: equal to NumPy over its shard, never a picture, never a small count."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import fedplatform
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Page
from watched_page import rendered

from fedplatform.core.site_statistics import BINS, PatientBin, SiteStatistics
from fedplatform.data.memory import from_arrays
from fedplatform.data.partition import Iid
from fedplatform.data.shards import Manifest, Shard, partition
from fedplatform.data.site_statistics import ROLES, _shown, site_statistics
from fedplatform.data.splits import Role
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.run import partition_data
from fedplatform.experiments.site_statistics import statistics_table, write_statistics

CLASSES = ("healthy", "lesion")
SIZE = 8


def shard_of(path: Path, rows: list[tuple[str, int, int]], *, channels: int = 1, seed: int = 0) -> Shard:
    """A shard of random pictures; each row is role, label and patient."""
    pictures = np.random.default_rng(seed).integers(0, 256, (len(rows), channels, SIZE, SIZE), dtype=np.uint8)
    columns = {
        "pixels": pa.array([picture.tobytes() for picture in pictures], pa.binary(channels * SIZE**2)),
        "label": pa.array([label for _, label, _ in rows], pa.int64()),
        "group": pa.array([patient for _, _, patient in rows], pa.int64()),
        "role": pa.array([role for role, _, _ in rows], pa.string()),
        "row": pa.array(range(len(rows)), pa.int64()),
    }
    metadata = {"classes": json.dumps(CLASSES), "channels": str(channels), "size": str(SIZE), "patients": "named"}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return Shard.open(path)


def of_all(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and patients of all three roles."""
    return (
        np.concatenate([shard.images(role) for role in ROLES]),
        np.concatenate([shard.groups(role) for role in ROLES]),
    )


def test_without_suppression_every_figure_is_numpys(shards: Path) -> None:
    for place, summary in enumerate(Manifest.load(shards).hospitals):
        shard = Shard.open(shards / summary.file)
        told = site_statistics(shard, f"hospital-{place:02d}", least=1)
        assert told.counts == {role.value: summary.counts[role.value] for role in ROLES}
        pictures, patients = of_all(shard)
        assert told.shown == len(pictures)
        assert told.patients == len(np.unique(patients))
        scans_of = np.unique(patients, return_counts=True)[1]
        assert {one.low: one.patients for one in told.scans_per_patient} == {2: int((scans_of == 2).sum())}
        assert told.means == pytest.approx([(pictures / 255).mean()], abs=5e-5)
        assert told.deviations == pytest.approx([(pictures / 255).std()], abs=5e-5)
        shares = np.histogram(pictures, bins=BINS, range=(0, 256))[0] / pictures.size
        assert told.histogram[0] == pytest.approx(shares.tolist(), abs=6e-6)
        assert (told.size, told.channels, told.names_patients) == (shard.size, shard.channels, True)


def test_colours_have_a_histogram_a_channel(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "a.parquet", [("train", place % 2, place) for place in range(20)], channels=3)
    told = site_statistics(shard, "a")
    pictures = shard.images(ROLES[0])
    assert told.means == pytest.approx((pictures / 255).mean(axis=(0, 2, 3)), abs=5e-5)
    assert told.deviations == pytest.approx((pictures / 255).std(axis=(0, 2, 3)), abs=5e-5)
    assert [len(row) for row in told.histogram] == [BINS] * 3


def test_a_count_of_few_patients_is_suppressed_however_many_scans_they_have(tmp_path: Path) -> None:
    rows = [("train", 0, place) for place in range(6)]
    rows += [("train", 1, 100 + place % 4) for place in range(40)]  # ten scans each of four patients
    told = site_statistics(shard_of(tmp_path / "a.parquet", rows), "a")
    assert told.counts == {"train": (6, None), "validation": (0, 0), "test": (0, 0)}
    assert (told.shown, told.patients, told.suppressed) == (6, 6, 1)
    assert told.scans_per_patient == (PatientBin(1, 1, 6),)


def test_a_class_without_scans_is_told_and_one_with_few_is_not_called_lacking(tmp_path: Path) -> None:
    rows = [("train", 0, place) for place in range(6)]
    assert site_statistics(shard_of(tmp_path / "a.parquet", rows), "a").lacking == (1,)
    assert site_statistics(shard_of(tmp_path / "b.parquet", [*rows, ("test", 1, 50)]), "b").lacking == ()


def test_a_hospital_with_few_patients_in_every_cell_tells_nothing_but_that(tmp_path: Path) -> None:
    rows = [(role.value, label, 10 * place + label) for place, role in enumerate(ROLES) for label in (0, 1)]
    told = site_statistics(shard_of(tmp_path / "a.parquet", rows), "a")
    assert (told.suppressed, told.shown, told.patients) == (6, 0, 0)
    assert (told.histogram, told.means, told.deviations, told.scans_per_patient) == ((), (), (), ())
    assert told.lacking == ()


def test_a_least_number_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"least number of patients >= 1, got 0"):
        site_statistics(shard_of(tmp_path / "a.parquet", [("train", 0, 0)]), "a", least=0)


@st.composite
def hospitals(draw: st.DrawFn) -> tuple[list[tuple[str, int, int]], int]:
    """Rows of a shard whose patients are each in one role, and a least number."""
    role_of = draw(st.lists(st.sampled_from([role.value for role in ROLES]), min_size=1, max_size=24))
    rows = [
        (role, draw(st.sampled_from((0, 1))), patient)
        for patient, role in enumerate(role_of)
        for _ in range(draw(st.integers(1, 6)))
    ]
    return rows, draw(st.integers(1, 6))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hospitals())
def test_every_figure_is_of_as_many_patients_as_asked_for(
    tmp_path: Path, drawn: tuple[list[tuple[str, int, int]], int]
) -> None:
    rows, least = drawn
    told = site_statistics(shard_of(tmp_path / "a.parquet", rows), "a", least=least)
    frame = pd.DataFrame(rows, columns=["role", "label", "patient"])
    for role in ROLES:
        for label in (0, 1):
            cell = frame[(frame["role"] == role.value) & (frame["label"] == label)]
            few = 0 < cell["patient"].nunique() < least
            assert told.counts[role.value][label] == (None if few else len(cell))
    assert all(one.patients >= least for one in told.scans_per_patient)
    assert sum(one.patients for one in told.scans_per_patient) == told.patients
    assert told.patients == 0 or told.patients >= least


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hospitals(), st.data())
def test_nothing_that_is_told_depends_on_what_a_suppressed_cell_holds(
    tmp_path: Path, drawn: tuple[list[tuple[str, int, int]], int], data: st.DataObject
) -> None:
    """So no total, no sum over sites and no cleverness gives a suppressed count away: the message is the same."""
    rows, least = drawn
    before = site_statistics(shard_of(tmp_path / "a.parquet", rows), "a", least=least)
    hidden = {(role, label) for role, counts in before.counts.items() for label in (0, 1) if counts[label] is None}
    kept = [row for row in rows if (row[0], row[1]) not in hidden]
    for number, (role, label) in enumerate(sorted(hidden)):
        patients = data.draw(st.integers(1, least - 1))
        scans = data.draw(st.lists(st.integers(1, 9), min_size=patients, max_size=patients))
        kept += [(role, label, 1000 + 10 * number + who) for who, times in enumerate(scans) for _ in range(times)]
    # The pictures that are shown must be the same ones, so those behind suppressed cells come last.
    first = [row for row in rows if (row[0], row[1]) not in hidden]
    reference = site_statistics(shard_of(tmp_path / "b.parquet", [*first, *_rest(rows, hidden)]), "a", least=least)
    assert site_statistics(shard_of(tmp_path / "c.parquet", kept), "a", least=least) == reference


def _rest(rows: list[tuple[str, int, int]], hidden: set[tuple[str, int]]) -> list[tuple[str, int, int]]:
    return [row for row in rows if (row[0], row[1]) in hidden]


def test_what_leaves_a_hospital_is_smaller_than_a_picture_and_holds_no_array(shards: Path) -> None:
    shard = Shard.open(shards / Manifest.load(shards).hospitals[0].file)
    told = site_statistics(shard, "a", least=1)

    def numbers(value: object) -> int:
        assert not isinstance(value, np.ndarray)
        if isinstance(value, SiteStatistics | PatientBin):
            return sum(numbers(getattr(value, field.name)) for field in fields(value))
        if isinstance(value, dict):
            return sum(map(numbers, value.values()))
        return sum(map(numbers, value)) if isinstance(value, tuple) else 1

    assert numbers(told) < 80 < shard.size**2
    assert shard.images(ROLES[0])[0].tobytes() not in pickle.dumps(told)


def test_a_shard_says_whether_patients_were_named(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pictures, labels = generator.random((120, 8, 8)), np.arange(120) % 2
    for name, groups, split in (("named", np.arange(120) // 2, "group_safe"), ("found", None, "group_safe")):
        data = from_arrays(pictures, labels, groups=groups)
        partition(
            data, name="x", how=Iid(), num_hospitals=2, seed=0, size=8, channels=1, folder=tmp_path / name,
            split=split, root_size=0,
        )  # fmt: skip
        told = site_statistics(Shard.open(tmp_path / name / "hospital-00.parquet"), "a")
        assert told.names_patients is (name == "named")
        assert told.without_patient == (0 if name == "named" else told.shown)


def test_the_table_has_every_figure_and_nothing_of_a_suppressed_cell(tmp_path: Path) -> None:
    rows = [("train", 0, place) for place in range(6)] + [("test", 1, 50)]
    sites = [site_statistics(shard_of(tmp_path / "a.parquet", rows), "a"), SiteStatistics("b", 5, failure="it is late")]
    table = statistics_table(sites, CLASSES)
    assert set(table["hospital"]) == {"a"}
    scans = table[table["statistic"] == "scans"].set_index(["role", "class"])
    assert scans.loc[("train", "healthy"), "value"] == 6
    assert scans.loc[("train", "lesion"), "value"] == 0
    assert np.isnan(scans.loc[("test", "lesion"), "value"])
    assert scans["suppressed"].tolist().count(True) == 1
    shares = table[table["statistic"] == "pixel_share"]
    assert shares["value"].sum() == pytest.approx(1, abs=1e-3)
    write_statistics(tmp_path / "out", sites, CLASSES, title="two")
    kept = pd.read_parquet(tmp_path / "out" / "statistics.parquet")
    assert len(kept) == len(table)


def test_hospitals_outside_are_refused_in_a_sentence(small: Experiment, shards: Path) -> None:
    experiment = small.replace(outside="hospital-04")
    with pytest.raises(ExperimentError, match="hospital-04: outside, and asked for updates and predictions only"):
        InProcessEngine().statistics(experiment, shards)


def test_the_page_shows_tables_and_a_curve_a_hospital(
    small: Experiment, shards: Path, tmp_path: Path, page: Page
) -> None:
    sites = InProcessEngine().statistics(small, shards, least=12)
    written = write_statistics(tmp_path, sites, Manifest.load(shards).classes, title="lesions")
    page.goto(written.as_uri())
    names = [*small.hospital_ids(), "all hospitals"]
    assert rendered(page, "#counts tbody th") == names
    assert page.locator("path.curve[d]").count() >= len(sites)
    cells = rendered(page, "#counts tbody tr >> nth=0 >> td")
    expected = [count for counts in sites[0].counts.values() for count in counts]
    assert cells[:-1] == ["< 12 patients" if count is None else str(count) for count in expected]
    suppressed = sum(site.suppressed for site in sites)
    assert suppressed
    assert "≥" in cells[-1]
    assert "What this protects, and what not" in rendered(page, "h2")


def test_the_page_fits_a_telephone_and_says_who_did_not_answer(tmp_path: Path, telephone: Page) -> None:
    shard = shard_of(tmp_path / "a.parquet", [("train", place % 2, place) for place in range(20)], channels=3)
    sites = [site_statistics(shard, "st-mary"), SiteStatistics("charite", 5, failure="its process died")]
    telephone.goto(write_statistics(tmp_path, sites, CLASSES, title="two").as_uri())
    assert telephone.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert "charite (its process died)" in telephone.locator("main").inner_text()
    assert telephone.locator("figure.chart-card").count() == 3


def test_nobody_answered_is_a_page_too(tmp_path: Path) -> None:
    page = write_statistics(tmp_path, [SiteStatistics("a", 5, failure="late")], CLASSES, title="none").read_text()
    assert "No hospital has answered." in page


def test_the_command_asks_the_hospitals_of_a_recipe_and_leaves_table_and_page(tmp_path: Path) -> None:
    data = "fedplatform.data.lesions:Lesions(hospitals=3, patients_per_hospital=40, slices_per_patient=1)"
    words = ["data", "statistics", "lesions", "--data", data, "--hospitals", "3", "--byzantine", "0", "--size", "16"]
    done = fedplatform([*words, "--root-size", "0", "--rule", "mean", "--engine", "local", "--out", "told"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "hospital-02" in done.stdout
    assert "their scans are in no figure" in done.stdout
    assert (tmp_path / "told" / "statistics.html").is_file()
    assert pd.read_parquet(tmp_path / "told" / "statistics.parquet")["hospital"].nunique() == 3


def test_a_scan_with_several_findings_hides_with_the_one_that_is_rare() -> None:
    """What is shown is of scans without a rare finding, and nothing else; a cell that gets too small goes, too."""
    finding, none = np.array([1] * 8 + [0] * 12) > 0, np.array([0] * 14 + [1] * 6) > 0
    rare = np.array([1] * 4 + [0] * 16) > 0  # on half of the scans with the finding: four are left of it, too few
    counts, shown = _shown([finding, rare, none], np.arange(20), 5)
    assert counts == (None, None, 6)
    assert shown.tolist() == [False] * 8 + [True] * 12
    counts, shown = _shown([finding, rare, none], np.arange(20), 3)
    assert counts == (8, 4, 6)
    assert shown.all()


def test_findings_are_counted_one_by_one_and_scans_once(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (80, 2))
    mine = from_arrays(random.random((80, 16, 16)), labels, classes=["a", "b"])
    experiment = Experiment.from_settings(
        {"data": mine, "task": "multilabel", "size": 16, "hospitals": 1, "byzantine": 0, "rule": "mean", "root_size": 0}
    )
    manifest = partition_data(experiment, tmp_path / "shards")
    shard = Shard.open(tmp_path / "shards" / manifest.hospitals[0].file)
    found = site_statistics(shard, "a", least=1)
    assert manifest.counted == ("a", "b", "no finding")
    train = shard.labels(Role.TRAIN)
    assert found.counts["train"] == (*train.sum(axis=0).tolist(), int((train.sum(axis=1) == 0).sum()))
    assert found.shown == 80
