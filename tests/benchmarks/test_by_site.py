"""The benchmark by site: a model that never saw a scan judges it, once; its table is what one would count by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from benchmarks.by_site import PARTS, Fold, Scans, fill, table
from fedplatform.data.sources import open_source

pytestmark = pytest.mark.slow

ROWS = ["nearest_neighbour", "fedavg", "own", "central", "leave_site_out"]
RECIPE = """
data: unused
size: 16
partition: site
hospitals: 3
model: small_cnn(width=4)
algorithm: fedavg
rounds: 1
batch_size: 8
root_size: 0
"""


@pytest.fixture(scope="module")
def clinics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clinics with sixty bright or dark pictures each."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(180):
        label = number % 2
        sink = io.BytesIO()
        Image.fromarray(draw.integers(0, 120, (16, 16), np.uint8) + np.uint8(100 * label)).save(sink, "PNG")
        rows.append({"image": sink.getvalue(), "label": label, "group": number, "site": f"clinic-{number % 3}"})
    file = tmp_path_factory.mktemp("clinics") / "clinics.parquet"
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata({"classes": "dark,bright"}), file)
    return file


@pytest.fixture(scope="module")
def cells(clinics: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cells")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    fill(str(clinics), recipe=str(recipe), rows=ROWS, seeds=[0], parts=range(PARTS), cells=folder)
    return folder


def test_every_scan_is_judged_once_in_every_row(cells: Path, clinics: Path) -> None:
    for row in ROWS:
        frame = pd.concat(map(pd.read_parquet, sorted(cells.glob(f"{clinics.stem}-{row}-seed0-part*.parquet"))))
        assert sorted(frame["scan"]) == list(range(180))
        assert frame[["dark", "bright"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
        assert set(frame["site"]) == {"clinic-0", "clinic-1", "clinic-2"}


def test_the_table_is_what_one_would_count_by_hand(cells: Path, clinics: Path) -> None:
    lines = table(str(clinics), cells).set_index(["row", "site"])
    assert set(lines.index.get_level_values("row")) == set(ROWS)
    frame = pd.concat(map(pd.read_parquet, cells.glob(f"{clinics.stem}-fedavg-seed0-part*.parquet")))
    here = frame[frame["site"] == "clinic-1"]
    assert lines.loc[("fedavg", "clinic-1"), "auc"] == pytest.approx(roc_auc_score(here["label"], here["bright"]))
    assert lines.loc[("fedavg", "clinic-1"), "scans"] == 60
    assert lines.loc[("fedavg", "all sites"), "scans"] == 180


def test_a_part_is_the_test_and_never_trains(clinics: Path) -> None:
    scans = Scans.read(str(clinics), seed=0, size=16)
    fold = Fold(open_source(str(clinics)), scans.part == 2, scans.of_site("clinic-0"))
    index = fold.index()
    assert index.num_rows == 60
    tested = index.filter(pa.array(np.array(index["split"]) == "test"))["group"].to_pylist()
    assert tested == [row for row in range(0, 180, 3) if scans.part[row] == 2]
    pictures = np.concatenate(list(fold.images(size=16, channels=1)))
    np.testing.assert_array_equal(pictures, scans.pictures[::3])


def test_a_second_call_computes_nothing_anew(cells: Path, clinics: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (gone,) = cells.glob(f"{clinics.stem}-nearest_neighbour-seed0-part3.parquet")
    gone.unlink()
    fill(str(clinics), recipe=str(cells / "recipe.yaml"), rows=ROWS, seeds=[0], parts=range(PARTS), cells=cells)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("nearest_neighbour seed 0 part 3")
