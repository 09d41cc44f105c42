"""``import fedplatform``: its public names, their examples, and how it says no."""

from __future__ import annotations

import doctest
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fedplatform as fp
from fedplatform.experiments.run_folder import RunFolder

SMALL = {"data": "lesions", "size": 16, "scans": 120, "hospitals": 3, "root_size": 0, "byzantine": 0, "rounds": 1}
ERRORS = ("DataError", "ExperimentError", "FedplatformError")


def test_all_is_exactly_the_public_names() -> None:
    assert fp.__all__ == sorted(fp.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert dir(fp) == sorted(fp.__all__)
    for name in fp.__all__:
        assert getattr(fp, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'agregate'"):
        _ = fp.agregate  # type: ignore[attr-defined]
    for name in fp.attacks.__all__:
        assert inspect.isclass(getattr(fp.attacks, name))


# Their examples train a defence or start a Ray; `run` and the rest stay in every tier.
LONG_EXAMPLES = ("defend", "evaluate", "Defence", "DefendedClassifier", "Ray")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LONG_EXAMPLES else ())
        for name in fp.__all__
        if name not in (*ERRORS, "attacks")
    ],
)
def test_every_public_name_says_what_it_is_by_an_example_that_runs(name: str) -> None:
    public = getattr(fp, name)
    assert public.__doc__
    names = {**vars(sys.modules[public.__module__]), "fp": fp, "np": np}
    (test,) = doctest.DocTestFinder(recurse=False).find(public, name, globs=names)
    assert test.examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(test).failed == 0


def test_the_words_of_a_setting_are_those_of_the_command_line() -> None:
    with pytest.raises(fp.ExperimentError, match="unknown setting 'ruel'; did you mean 'rule'"):
        fp.run(ruel="mean")
    with pytest.raises(fp.FedplatformError, match="unknown aggregation rule 'meen'; did you mean 'mean'"):
        fp.run(rule="meen")
    with pytest.raises(fp.ExperimentError, match="unknown recipe 'lesion'"):
        fp.run("lesion")


def test_a_result_tells_of_rounds_hospitals_and_scans(tmp_path: Path) -> None:
    heard: list[int] = []

    class Listener(fp.Callback):
        def round_finished(self, reports: object) -> None:
            heard.append(len(reports))  # type: ignore[arg-type]

    result = fp.run(**SMALL, rule="mean", folder=tmp_path / "mine", callbacks=[Listener()])
    assert heard == [1]
    assert list(result.rounds.index) == [1]
    assert list(result.hospitals.loc[1].index) == ["hospital-00", "hospital-01", "hospital-02"]
    assert "accuracy" in repr(result)
    assert "<table" in result._repr_html_()
    images, labels = result.scans("hospital-01", role="train")
    assert images.shape == (len(labels), 1, 16, 16)
    assert 0 <= images.min() <= images.max() <= 1
    assert "<html" in result.report()
    assert "<iframe" in result.report()._repr_html_()
    with pytest.raises(fp.ExperimentError, match="no hospital is called 'hospital-09'; there are hospital-00"):
        result.scans("hospital-09")
    with pytest.raises(fp.ExperimentError, match="no role is called 'tset'"):
        result.scans("hospital-00", role="tset")
    again = fp.Result.open(tmp_path / "mine")
    assert again.rounds.equals(result.rounds)
    assert RunFolder(tmp_path / "mine").read_settings()["rule"] == "mean"
    with pytest.raises(fp.ExperimentError, match="holds no finished run"):
        fp.Result.open(tmp_path)


def test_a_temporary_run_goes_with_its_result() -> None:
    result = fp.run(**SMALL, rule="mean")
    folder = result.path
    assert folder.is_dir()
    del result
    assert not folder.exists()


def test_a_comparison_has_a_row_a_rule_and_keeps_every_cell(tmp_path: Path) -> None:
    settings = {**SMALL, "byzantine": 1}
    asked = {"rules": ["mean", "median"], "attacks": ["none", "sign_flip"], "seeds": [0, 1], "folder": tmp_path / "c"}
    table = fp.compare(**settings, **asked)  # type: ignore[arg-type]
    assert list(table.columns) == ["none", "sign_flip", "worst"]
    assert np.isnan(table.loc["nearest_neighbour", "worst"])
    assert table.loc["mean", "worst"] == table.loc["mean", ["none", "sign_flip"]].min()
    cells = table.attrs["cells"]
    assert len(cells) == 2 * (2 + 4)
    mine = [cell["accuracy"] for cell in cells if (cell["rule"], cell["attack"]) == ("median", "sign_flip")]
    assert table.loc["median", "sign_flip"] == pytest.approx(np.mean(mine))
    assert fp.compare(**settings, **asked).equals(table)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (np.zeros((4, 8)), [0, 1, 0, 1], "images are (n, h, w)"),
        (np.full((4, 8, 8), 2.0), [0, 1, 0, 1], "float images are in [0, 1], got 2 to 2"),
        (np.full((4, 8, 8), np.nan), [0, 1, 0, 1], "float images are in [0, 1]"),
        (np.zeros((4, 8, 8), np.int32), [0, 1, 0, 1], "images are uint8, or floats in [0, 1], got int32"),
        (np.zeros((4, 8, 8)), [0, 1, 0], "labels are one whole number a scan (4)"),
        (np.zeros((4, 8, 8)), [0.0, 1.0, 0.0, 0.5], "labels are one whole number a scan (4), got float64"),
        (np.zeros((0, 8, 8)), [], "at least one scan"),
    ],
)
def test_scans_in_memory_that_do_not_fit_are_refused_in_one_line(
    images: np.ndarray, labels: list[int], said: str
) -> None:
    with pytest.raises(fp.DataError) as refused:
        fp.from_arrays(images, labels)
    assert said in str(refused.value)


def test_scans_in_memory_are_read_whatever_their_layout() -> None:
    generator = np.random.default_rng(0)
    grey = generator.integers(0, 256, (6, 12, 10), dtype=np.uint8)
    colour = generator.integers(0, 256, (6, 12, 10, 3), dtype=np.uint8)
    labels = [3, 7, 3, 7, 3, 7]
    for images in (grey, grey[:, None], grey[..., None], torch.from_numpy(grey), grey / 255):
        source = fp.from_arrays(images, labels, classes=["healthy", "lesion"])
        assert (source.pixels == grey).all()
        assert source.classes == ("healthy", "lesion")
        assert source.index()["label"].to_pylist() == [0, 1] * 3
    for images in (colour, np.moveaxis(colour, 3, 1)):
        assert (fp.from_arrays(images, labels).pixels == colour).all()
    with pytest.raises(fp.DataError, match="2 different labels need as many classes, got 1"):
        fp.from_arrays(grey, labels, classes=["healthy"])


def test_an_experiment_on_scans_in_memory_keeps_them_when_it_is_changed() -> None:
    generator = np.random.default_rng(0)
    mine = fp.from_arrays(generator.random((60, 16, 16)), np.arange(60) % 2, groups=np.arange(60) // 2, name="mine")
    result = fp.run(data=mine, hospitals=2, byzantine=0, rule="mean", rounds=1)
    assert result.experiment.size == 16
    assert result.experiment.replace(seed=1).data is mine
    assert result.experiment.data_slug == "mine"
    table = fp.compare(result.experiment, rules=["mean"])
    assert list(table.index) == ["nearest_neighbour", "central", "mean"]
