"""One's own data: which settings are found in a folder or file, why, and what is warned of."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import fedplatform as fp
from fedplatform.data.error import DataError
from fedplatform.data.index import Index
from fedplatform.data.survey import told_from_mirror
from fedplatform.experiments.experiment import Experiment, ExperimentError
from fedplatform.experiments.own_data import Proposal, resolve

REASONS = 20  # settings and facts in the table, at least


def picture(generator: np.random.Generator, *, bright: bool, side: int = 32, colour: bool = False) -> Image.Image:
    """Noise, with a bright square somewhere or not."""
    pixels = generator.integers(0, 120, (side, side), dtype=np.uint8)
    if bright:
        row, column = generator.integers(0, side - side // 4, 2)
        pixels[row : row + side // 4, column : column + side // 4] = 255
    if colour:
        pixels = np.stack([pixels, pixels // 2, pixels // 3], axis=2)
    return Image.fromarray(pixels)


def fill(folder: Path, names: list[str], *, bright: bool, seed: int = 0, side: int = 32, colour: bool = False) -> None:
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        picture(generator, bright=bright, side=side, colour=colour).save(folder / name)


def two_classes(root: Path, names: list[str], *, seed: int = 0) -> Path:
    fill(root / "clear", names, bright=False, seed=seed)
    fill(root / "with lesion", names, bright=True, seed=seed + 1)
    return root


def numbered(count: int) -> list[str]:
    return [f"{number}.png" for number in range(count)]


def found(data: Path, **given: object) -> Proposal:
    settings, proposal = resolve(str(data), given)
    assert proposal is not None
    Experiment.from_settings(settings)  # what is proposed can be run
    return proposal


def why(proposal: Proposal, setting: str) -> str:
    return next(choice.why for choice in proposal.choices if choice.setting == setting)


def value(proposal: Proposal, setting: str) -> str:
    return next(choice.value for choice in proposal.choices if choice.setting == setting)


def test_a_folder_of_class_folders_is_enough_and_every_setting_has_its_reason(tmp_path: Path) -> None:
    proposal = found(two_classes(tmp_path / "my scans", numbered(60)))
    assert value(proposal, "classes") == "clear 60, with lesion 60"
    assert (proposal.settings["hospitals"], proposal.settings["partition"]) == (5, "iid")
    assert (proposal.settings["byzantine"], proposal.settings["rule"], proposal.settings["root_size"]) == (0, "mean", 0)
    assert proposal.settings["size"] == 32
    assert len(proposal.choices) >= REASONS
    assert all(choice.why for choice in proposal.choices)
    assert not proposal.warnings


def test_what_was_given_wins_and_the_rest_follows_from_it(tmp_path: Path) -> None:
    data = two_classes(tmp_path / "mine", numbered(60))
    proposal = found(data, hospitals=3, attack="sign_flip", size=24, model="small_cnn(width=4)")
    assert (proposal.settings["hospitals"], why(proposal, "hospitals")) == (3, "given")
    assert (proposal.settings["byzantine"], proposal.settings["rule"]) == (1, "trust")
    assert int(str(proposal.settings["root_size"])) > 0
    assert (proposal.settings["size"], why(proposal, "attack")) == (24, "given")
    assert "weights" not in proposal.settings
    with pytest.raises(ExperimentError, match="given twice"):
        resolve(str(data), {"data": "lesions"})


def test_a_comparison_gets_a_root_set_and_attackers_where_its_rules_and_attacks_need_them(tmp_path: Path) -> None:
    data = two_classes(tmp_path / "mine", numbered(60))
    settings, _ = resolve(str(data), {}, rules=("mean", "trust"), attacks=("none", "sign_flip"))
    assert int(str(settings["root_size"])) > 0
    assert settings["byzantine"] == 2
    settings, _ = resolve(str(data), {}, rules=("mean", "median"), attacks=("none",))
    assert (settings["root_size"], settings["byzantine"]) == (0, 0)


def test_a_recipe_says_how_to_train_and_the_data_say_the_rest(tmp_path: Path) -> None:
    data = two_classes(tmp_path / "mine", numbered(60))
    settings, proposal = resolve("lesions", {"data": str(data)})
    assert proposal is not None
    assert (settings["partition"], settings["hospitals"], settings["byzantine"]) == ("iid", 5, 0)
    assert (settings["algorithm"], settings["local_epochs"], settings["rule"]) == ("fedbn_p", 5, "trust")
    assert 0 < int(str(settings["root_size"])) < 20
    assert why(proposal, "rounds") == "recipe lesions"
    assert resolve("lesions", {"rounds": 2})[1] is None


def test_every_site_is_a_hospital_unless_it_is_too_small(tmp_path: Path) -> None:
    for site in ("lyon", "utrecht", "wien"):
        two_classes(tmp_path / "mine" / f"site={site}", numbered(12 if site == "wien" else 30), seed=len(site))
    proposal = found(tmp_path / "mine")
    assert (proposal.settings["hospitals"], proposal.settings["partition"]) == (3, "site")
    assert "lyon 60, utrecht 60, wien 24" in why(proposal, "hospitals")
    two_classes(tmp_path / "mine" / "site=oslo", numbered(3), seed=9)
    proposal = found(tmp_path / "mine")
    assert proposal.settings["partition"] == "iid"
    assert "oslo has 6 scans only" in why(proposal, "hospitals")
    one = found(two_classes(tmp_path / "one" / "site=lyon", numbered(30)).parent)
    assert one.settings["partition"] == "iid"
    assert "all scans are of site lyon" in why(one, "hospitals")


def test_sites_that_differ_in_their_mix_of_classes_share_the_whole_network(tmp_path: Path) -> None:
    for site, lesions in (("lyon", 30), ("utrecht", 3)):
        fill(tmp_path / f"site={site}" / "clear", numbered(30), bright=False, seed=len(site))
        fill(tmp_path / f"site={site}" / "lesion", numbered(lesions), bright=True, seed=len(site) + 1)
    proposal = found(tmp_path)
    assert proposal.settings["algorithm"] == "fedavg"
    assert "'lesion' is 9% to 50%" in why(proposal, "algorithm")


def test_patients_are_found_in_file_names_that_repeat_a_number(tmp_path: Path) -> None:
    for number, name in enumerate(("clear", "lesion")):
        names = [f"P{number}{patient:03d}-{slice}.png" for patient in range(12) for slice in range(4)]
        fill(tmp_path / name, names, bright=bool(number), seed=number)
    proposal = found(tmp_path)
    assert "24 patients of 96 files" in why(proposal, "patients")
    assert proposal.settings["sampling"] == "groups"
    experiment = Experiment.from_settings(proposal.settings)
    groups = Index.of(experiment.open_data()).groups
    assert groups is not None
    assert len(np.unique(groups)) == 24
    assert found(tmp_path, patients="none").settings["patients"] == "none"
    given = found(tmp_path, patients=r"^P\d(\d+)")
    assert why(given, "patients") == "given, 12 patients"
    with pytest.raises(DataError, match="finds no patient in the file's name"):
        found(tmp_path, patients="(Q[0-9]+)")
    with pytest.raises(DataError, match="one group"):
        found(tmp_path, patients="P[0-9]+")


def test_a_running_number_is_no_patient(tmp_path: Path) -> None:
    names = [f"scan_{number:04d}.png" for number in range(20)] + [f"{number:04d}_mri.png" for number in range(20)]
    assert found(two_classes(tmp_path, names)).settings["patients"] == "none"


def test_a_published_split_stands_and_its_leaks_are_told(tmp_path: Path) -> None:
    for seed, part in enumerate(("train", "test")):
        two_classes(tmp_path / part, numbered(40 if part == "train" else 10), seed=10 * seed)
    clean = found(tmp_path)
    assert "a test set of 20 scans" in why(clean, "split")
    assert not clean.warnings
    for name in numbered(5):
        (tmp_path / "test" / "clear" / f"copy-{name}").write_bytes((tmp_path / "train" / "clear" / name).read_bytes())
    (warning,) = found(tmp_path).warnings
    assert "% of the test scans have a near-identical picture in training" in warning
    assert "--split redrawn" in warning
    assert not found(tmp_path, split="redrawn").warnings


def test_a_published_split_that_cuts_patients_is_drawn_anew(tmp_path: Path) -> None:
    for seed, part in enumerate(("train", "test")):
        names = [f"patient{patient:02d}_{part}{slice}.png" for patient in range(10) for slice in range(3)]
        two_classes(tmp_path / part, names, seed=10 * seed)
    proposal = found(tmp_path)
    assert proposal.settings["split"] == "redrawn"
    assert "10 patients on both sides" in proposal.warnings[0]
    assert found(tmp_path, patients="none").settings["split"] == "group_safe"


def test_a_parquet_file_names_patients_and_sites_in_its_columns(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = []
    for number in range(120):
        buffer = io.BytesIO()
        picture(generator, bright=bool(number % 2), colour=True).save(buffer, "PNG")
        site = ("a", "b", "c")[number // 4 % 3]
        rows.append({"image": buffer.getvalue(), "label": ("no", "yes")[number % 2], "Patient_ID": f"p{number // 4}",
                     "site": site, "ward": f"w{number // 12}"})  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    proposal = found(tmp_path / "mine.parquet")
    assert why(proposal, "patients") == "column Patient_ID: 30 patients of 120 scans"
    assert (proposal.settings["hospitals"], proposal.settings["partition"]) == (3, "site")
    assert why(proposal, "channels") == "colour"
    wards = found(tmp_path / "mine.parquet", patients="ward")
    assert why(wards, "patients") == "given, 10 patients"
    assert wards.settings["partition"] == "iid", "a ward has scans of several sites"
    with pytest.raises(DataError, match="patients names a column, got 'nobody'"):
        found(tmp_path / "mine.parquet", patients="nobody")


def test_an_npz_brings_its_own_split(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 80), ("test", 20)):
        arrays[f"x_{part}"] = generator.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 2
    np.savez(tmp_path / "mine.npz", **arrays)
    proposal = found(tmp_path / "mine.npz")
    assert proposal.settings["size"] == 32
    assert "a test set of 20 scans" in why(proposal, "split")


def test_two_pictures_a_class_are_refused_in_a_sentence_that_helps(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class 'clear' has 2 scans; training, validation and test need one each"):
        found(two_classes(tmp_path, numbered(2)))


def test_small_large_grey_and_coloured_pictures_get_one_size_and_colour(tmp_path: Path) -> None:
    fill(tmp_path / "a", numbered(20), bright=False, side=16)
    fill(tmp_path / "b", numbered(10), bright=True, side=16, seed=1)
    fill(tmp_path / "b", [f"c{name}" for name in numbered(10)], bright=True, side=300, seed=2, colour=True)
    proposal = found(tmp_path)
    assert proposal.settings["size"] == 32
    assert "median; 16 to 300" in why(proposal, "size")
    assert why(proposal, "channels") == "colour; 75% of the pictures are grey and get three equal channels"


def test_pictures_with_a_left_and_a_right_are_not_mirrored() -> None:
    generator = np.random.default_rng(0)
    labels = np.zeros(200, np.int64)
    noise = generator.random((200, 16, 16)).astype(np.float32)
    assert told_from_mirror(noise, labels) < 0.65
    noise[:, :, :6] += 1  # as a heart lies on one side
    assert told_from_mirror(noise, labels) > 0.9


def test_python_takes_ones_own_data_as_the_command_line_does(tmp_path: Path) -> None:
    data = two_classes(tmp_path / "mine", numbered(24))
    result = fp.run(str(data), rounds=1, model="small_cnn(width=4)", local_epochs=1)
    assert result.experiment.partition == Experiment.from_settings({"partition": "iid"}).partition
    assert len(result.rounds) == 1
