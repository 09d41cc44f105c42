from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fedplatform.core.settings import ExperimentError
from fedplatform.defence import KeyedNoise
from fedplatform.defence.presets import KEY
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.serving.bundle import Bundle
from fedplatform.serving.examples import FOLDER
from fedplatform.serving.versions import (
    RegistryVersions,
    RunVersions,
    bundle_of,
    hospitals_in,
    registry_uri,
)


@pytest.fixture(scope="module")
def run(defended: Path) -> DefendedRun:
    return DefendedRun(defended)


@pytest.fixture(scope="module")
def version(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version without the scans to try that lie beside its bundles."""
    folder, beside = RunVersions(published).folder("1"), shutil.ignore_patterns(FOLDER)
    return Path(shutil.copytree(folder, tmp_path_factory.mktemp("version") / "1", ignore=beside))


@pytest.mark.parametrize("hospital_id", ["hospital-00", "hospital-01"])
def test_a_bundle_answers_as_the_original_does_bit_for_bit(run: DefendedRun, version: Path, hospital_id: str) -> None:
    parts = run.hospital(hospital_id)
    images = torch.cat([parts.test[0][:8], torch.rand(8, 1, 16, 16)])  # noise, so that the purifier is asked, too
    with torch.no_grad():
        expected = parts.defended("full").passage(images)
        passage = bundle_of(version, hospital_id).defended(KeyedNoise(KEY)).passage(images)
    assert expected.flagged.any()
    assert not expected.flagged.all()
    for name in ("logits", "scores", "flagged", "depth", "purified", "votes"):
        assert torch.equal(getattr(passage, name), getattr(expected, name)), name


@pytest.mark.parametrize("hospital_id", ["hospital-00", "hospital-01"])
def test_on_the_faster_engine_a_bundle_answers_to_a_ten_thousandth_the_same(
    run: DefendedRun, version: Path, hospital_id: str
) -> None:
    images = torch.cat([run.hospital(hospital_id).test[0][:8], torch.rand(8, 1, 16, 16)])
    bundle = bundle_of(version, hospital_id)
    with torch.no_grad():
        expected = bundle.defended(KeyedNoise(KEY)).passage(images)
        passage = bundle.accelerated(KeyedNoise(KEY)).passage(images)
    torch.testing.assert_close(passage.logits.softmax(dim=1), expected.logits.softmax(dim=1), atol=1e-4, rtol=0)
    torch.testing.assert_close(passage.scores, expected.scores, atol=1e-3, rtol=1e-4)
    assert torch.equal(passage.flagged, expected.flagged)
    assert torch.equal(passage.votes, expected.votes)


def test_a_defence_without_a_detector_is_bundled_too(run: DefendedRun, bare_version: Path) -> None:
    bundle = bundle_of(bare_version, "hospital-00")
    assert bundle.card.gate.threshold == float("inf")
    json.loads((bundle.folder / "bundle.json").read_text(), parse_constant=pytest.fail)
    parts = run.hospital("hospital-00")
    with torch.no_grad():
        expected = parts.defended("no_defence").logits(parts.test[0])
        assert torch.equal(bundle.defended(KeyedNoise(KEY)).logits(parts.test[0]), expected)


def test_a_bundle_holds_neither_scans_nor_the_key_of_the_noise(version: Path) -> None:
    files = sorted(str(file.relative_to(version)) for file in version.rglob("*") if file.is_file())
    networks = ("autoencoder", "classifier", "purifier", "sensor")
    names = sorted(
        [
            "bundle.json",
            "kind.safetensors",
            *(f"{name}.{kind}" for name in networks for kind in ("onnx", "safetensors")),
        ]
    )
    assert files == [f"hospital-0{n}/{name}" for n in (0, 1) for name in names]
    assert not any(KEY in (version / file).read_bytes() for file in files)


@pytest.mark.parametrize("name", ["classifier.safetensors", "sensor.onnx"])
def test_a_bundle_whose_weights_were_changed_is_refused(version: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(version / "hospital-00", tmp_path / "b")
    file = tmp_path / "b" / name
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ExperimentError, match=f"{name} is not the file that bundle.json speaks of"):
        Bundle.open(tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "said"), [("{", "holds no bundle"), ("{}", "is not of format 2"), ('{"format": 1}', "is not of format 2")]
)
def test_a_folder_that_is_no_bundle_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(ExperimentError, match=said):
        Bundle.open(tmp_path)


def test_what_cleans_a_scan_has_a_digest_of_its_own(version: Path) -> None:
    first, second = (bundle_of(version, f"hospital-0{n}") for n in (0, 1))
    assert first.digest != second.digest
    # The network is the federation's; the gate is fitted in each hospital.
    assert first.card.digests["purifier.safetensors"] == second.card.digests["purifier.safetensors"]
    assert first.purifier_digest != second.purifier_digest


def test_versions_of_a_run_folder_are_numbered_and_one_is_the_champion(version: Path, tmp_path: Path) -> None:
    versions = RunVersions(tmp_path)
    assert versions.numbers() == ()
    with pytest.raises(ExperimentError, match="has no published version"):
        versions.champion()
    for expected in ("1", "2"):
        assert versions.add(lambda folder: shutil.copytree(version, folder, dirs_exist_ok=True)) == expected
    versions.promote("2")
    assert versions.champion() == "2"
    versions.promote("1")
    assert (versions.champion(), versions.numbers()) == ("1", ("1", "2"))
    assert hospitals_in(versions.folder("2")) == ("hospital-00", "hospital-01")
    with pytest.raises(ExperimentError, match="no version '3'; it has 1, 2"):
        versions.promote("3")
    with pytest.raises(ExperimentError, match=r"no version '\.\./1'"):
        versions.folder("../1")
    with pytest.raises(ExperimentError, match="no model of 'nobody'"):
        bundle_of(versions.folder("1"), "nobody")


def test_a_version_that_could_not_be_written_whole_is_not_there(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError("disk full")

    versions = RunVersions(tmp_path)
    with pytest.raises(OSError, match="disk full"):
        versions.add(fail)
    assert versions.numbers() == ()
    assert not [*tmp_path.rglob("half")]


def test_versions_of_mlflows_registry_are_the_same_bundles(version: Path, tmp_path: Path) -> None:
    versions = RegistryVersions("spots", registry_uri(tmp_path), tmp_path / "cache")
    number = versions.add(version)
    with pytest.raises(ExperimentError, match="alias champion not found"):
        versions.champion()
    versions.promote(number)
    assert (versions.champion(), versions.numbers()) == ("1", ("1",))
    assert hospitals_in(versions.folder(number)) == ("hospital-00", "hospital-01")
    fetched = bundle_of(versions.folder(number), "hospital-01")
    assert fetched.digest == bundle_of(version, "hospital-01").digest
