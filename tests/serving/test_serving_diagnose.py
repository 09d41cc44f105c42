from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from click.testing import CliRunner
from hostile_uploads import dicom_bytes, nifti_bytes, picture_bytes, scan_pixels, volume_voxels

from fedplatform.cli import fedplatform
from fedplatform.data.error import DataError
from fedplatform.data.images import to_images
from fedplatform.data.origin import Origin
from fedplatform.defence import DefendedClassifier, Diagnosis, KeyedNoise
from fedplatform.defence.diagnosis import FOREIGN_HEADER
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.serving.api_keys import today
from fedplatform.serving.audit import AuditEntry, AuditError
from fedplatform.serving.audit_log import AuditLog
from fedplatform.serving.bundle import CARD, Bundle
from fedplatform.serving.diagnose import FolderDiagnosis
from fedplatform.serving.intake import Limits, read_scans
from fedplatform.serving.replay import replay
from fedplatform.serving.secret import fingerprint
from fedplatform.serving.versions import RunVersions, bundle_of

SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def run(defended: Path) -> DefendedRun:
    return DefendedRun(defended)


@pytest.fixture(scope="module")
def hospital(run: DefendedRun) -> str:
    return run.tested[0]


@pytest.fixture(scope="module")
def whole(run: DefendedRun, hospital: str) -> DefendedClassifier:
    return replace(run.hospital(hospital).defended("full"), noise=KeyedNoise(SECRET))


@pytest.fixture(scope="module")
def flagging(published: Path, hospital: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The hospital's bundle with a threshold below every score."""
    folder = tmp_path_factory.mktemp("flagging") / hospital
    shutil.copytree(RunVersions(published).folder("1") / hospital, folder)
    card = json.loads((folder / CARD).read_text())
    card["gate"]["threshold"] = -1e9
    (folder / CARD).write_text(json.dumps(card))
    return Bundle.open(folder)


@pytest.fixture
def work(published: Path, hospital: str, whole: DefendedClassifier) -> FolderDiagnosis:
    card = bundle_of(RunVersions(published).folder("1"), hospital).card
    return FolderDiagnosis(whole, card, hospital, "1", Limits(bytes=200_000, slices=1))


@pytest.fixture
def folder(tmp_path: Path, run: DefendedRun, hospital: str) -> Path:
    """Scans of every kind, twenty of them the hospital's own, and files that are none."""
    place = tmp_path / "scans"
    (place / "deep" / "deeper").mkdir(parents=True)
    for number, scan in enumerate(run.hospital(hospital).test[0][:20]):
        pixels = (scan[0].numpy() * 255).round().astype(np.uint8)
        (place / "deep" / f"{number:02d}.png").write_bytes(picture_bytes(pixels, "PNG"))
    (place / "deep" / "deeper" / "frames.dcm").write_bytes(dicom_bytes(np.stack([scan_pixels()] * 3)))
    (place / "volume.nii.gz").write_bytes(gzip.compress(nifti_bytes(volume_voxels())))
    (place / "photo").write_bytes(picture_bytes(scan_pixels(), "JPEG"))
    (place / "notes.txt").write_text("buy milk")
    (place / "empty.png").touch()
    (place / "large.png").write_bytes(bytes(200_001))
    (place / ".hidden.png").touch()
    return place


@dataclass
class Counted:
    """A defence that counts the scans it is given, and may be stopped after some."""

    defended: DefendedClassifier
    scans: int = 0
    stop_at: int = 10**9
    batches: list[int] = field(default_factory=list)

    def diagnose(self, images: torch.Tensor) -> list[Diagnosis]:
        if self.scans >= self.stop_at:
            raise KeyboardInterrupt
        self.scans += len(images)
        self.batches.append(len(images))
        return self.defended.diagnose(images)


def nothing(done: int, total: int) -> None:
    pass


def read(path: Path) -> pd.DataFrame:
    words = dict.fromkeys(("class_name", "votes", "model_version"), str)
    return pd.read_csv(path, dtype=words) if path.suffix == ".csv" else pd.read_parquet(path)


@pytest.mark.parametrize("name", ["answers.csv", "answers.parquet"])
def test_a_folder_is_a_row_a_scan_and_what_is_no_scan_a_row_with_its_reason(
    work: FolderDiagnosis, whole: DefendedClassifier, folder: Path, tmp_path: Path, name: str
) -> None:
    told: list[tuple[int, int]] = []
    work.write(folder, tmp_path / name, progress=lambda done, total: told.append((done, total)))
    table = read(tmp_path / name)
    assert told == [(done, 26) for done in range(1, 27)]
    assert list(table.columns) == work.columns
    reasons = table["reason"].fillna("")
    assert len(table) == 20 + 3 + 1 + 1 + 3
    assert dict(zip(table["file"][reasons != ""], reasons[reasons != ""], strict=True)) == {
        "empty.png": "The upload is empty.",
        "large.png": "The upload is too large: 200,000 bytes are allowed.",
        "notes.txt": "This is of no kind that is read here; send a PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI file.",
    }
    frames = table[table["file"] == "deep/deeper/frames.dcm"]
    assert frames["scan"].tolist() == [0, 1, 2]
    assert frames["study"].astype(bool).sum() == 1, "one frame answers for the file"
    assert table["slice"][table["file"] == "volume.nii.gz"].tolist() == [4]
    ours = table[table["file"].str.startswith("deep/") & table["file"].str.endswith(".png")]
    images = to_images(
        np.concatenate(
            [read_scans((folder / file).read_bytes(), size=16, channels=1, limits=Limits()) for file in ours["file"]]
        )
    )
    expected = whole.diagnose(images)
    assert ours["confidence"].tolist() == pytest.approx([d.confidence for d in expected], abs=1e-5)
    assert ours["class_name"].astype(str).tolist() == [work.card.classes[d.label] for d in expected]
    assert ours["anomaly_score"].tolist() == pytest.approx([d.anomaly_score for d in expected], abs=1e-4)
    assert ours["flagged"].astype(bool).tolist() == [d.flagged for d in expected]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "scans"]), "nothing is left beside it"


@pytest.mark.parametrize("name", ["answers.csv", "answers.parquet"])
def test_a_call_that_was_stopped_goes_on_where_it_was_and_ends_with_the_same_table(
    work: FolderDiagnosis, folder: Path, tmp_path: Path, name: str
) -> None:
    work.write(folder, tmp_path / f"straight_{name}", progress=nothing)
    counted = Counted(work.defended, stop_at=16)
    stopped = replace(work, defended=counted)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        stopped.write(folder, tmp_path / name, progress=nothing)
    assert not (tmp_path / name).exists()
    journal = tmp_path / f".{name}.partial"
    with journal.open("a") as file:
        file.write('[{"file": "cut sho')  # as a crash leaves it
    counted.stop_at = 10**9
    stopped.write(folder, tmp_path / name, progress=nothing)
    assert counted.scans == 25, "no scan was diagnosed twice"
    pd.testing.assert_frame_equal(read(tmp_path / name), read(tmp_path / f"straight_{name}"))
    assert not journal.exists()


@pytest.mark.parametrize("name", ["answers.csv", "answers.parquet"])
def test_a_table_that_is_there_takes_up_what_is_new_and_what_another_model_said_is_said_anew(
    work: FolderDiagnosis, folder: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    first = work.write(folder, out, progress=nothing)
    counted = Counted(work.defended)
    again = replace(work, defended=counted)  # type: ignore[arg-type]
    again.write(folder, out, progress=nothing)
    assert counted.scans == 0
    assert read(out)["confidence"].dropna().tolist() == first["confidence"].dropna().tolist()
    shutil.copy(folder / "deep" / "00.png", folder / "new.png")
    (folder / "deep" / "01.png").write_bytes((folder / "deep" / "02.png").read_bytes())
    (folder / "photo").unlink()
    again.write(folder, out, progress=nothing)
    assert counted.scans == 2
    assert len(read(out)) == len(first)
    replace(again, model_version="2").write(folder, out, progress=nothing)
    assert counted.scans == 2 + 25


def test_a_table_of_something_else_is_not_overwritten(work: FolderDiagnosis, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="holds another table"):
        work.write(folder, other, progress=nothing)
    assert other.read_text() == "a,b\n1,2\n"
    with pytest.raises(DataError, match=r"\.csv or a \.parquet"):
        work.write(folder, tmp_path / "answers.txt", progress=nothing)
    with pytest.raises(DataError, match="no such folder"):
        work.write(tmp_path / "nowhere", tmp_path / "answers.csv", progress=nothing)


def entry_of(whole: DefendedClassifier, data: bytes, hospital: str, *, model_digest: str) -> AuditEntry:
    import hashlib

    images = to_images(read_scans(data, size=16, channels=1, limits=Limits()))
    with torch.no_grad():
        passage = whole.passage(images)
        diagnosis = whole.conclude(passage)[0]
    return AuditEntry(
        request_id="r",
        time="2026-11-24T23:40:00+00:00",
        key_id="k",
        hospital_id=hospital,
        input_sha256=hashlib.sha256(data).hexdigest(),
        scan=0,
        slice_number=None,
        model_version="1",
        model_digest=model_digest,
        purifier_digest="p",
        threshold=diagnosis.threshold,
        anomaly_score=diagnosis.anomaly_score,
        parts={name: float(scores[0]) for name, scores in passage.parts.items()},
        flagged=diagnosis.flagged,
        depth=diagnosis.depth,
        votes=diagnosis.votes,
        label=diagnosis.label,
        referral=diagnosis.referral,
        kind_score=diagnosis.kind_score,
        confidence=diagnosis.confidence,
        counter=0,
        noise_fingerprint=fingerprint(SECRET),
    )


def test_a_line_is_replayed_and_what_was_written_down_wrongly_is_named(
    flagging: Bundle, hospital: str, folder: Path
) -> None:
    defended = flagging.defended(KeyedNoise(SECRET))
    scans = sorted((folder / "deep").glob("*.png"))
    images = to_images(
        np.concatenate([read_scans(s.read_bytes(), size=16, channels=1, limits=Limits()) for s in scans])
    )
    unsure = int(np.argmin([diagnosis.confidence for diagnosis in defended.diagnose(images)]))
    data = scans[unsure].read_bytes()
    entry = entry_of(defended, data, hospital, model_digest=flagging.digest)
    assert entry.votes
    form = {"bundle": flagging, "limits": Limits()}
    assert replay(entry, data, secret=SECRET, **form) == ()
    with pytest.raises(AuditError, match=f"not the secret of that line.*{entry.noise_fingerprint}"):
        replay(entry, data, secret=bytes(32), **form)
    other = replace(entry, noise_fingerprint=fingerprint(bytes(32)))
    assert replay(other, data, secret=bytes(32), **form), "another secret is another noise"
    assert replay(replace(entry, counter=1), data, secret=SECRET, **form), "another counter, too"
    wrong = replace(entry, label=1 - entry.label, depth=entry.depth + 1, parts={**entry.parts, "tampering": 99.0})
    said = " ".join(replay(wrong, data, secret=SECRET, **form))
    for name in ("label was", "depth was", "part tampering was 99.0"):
        assert name in said
    with pytest.raises(AuditError, match="not the scan"):
        replay(entry, data + b"x", secret=SECRET, **form)
    with pytest.raises(AuditError, match="not the model"):
        replay(replace(entry, model_digest="other"), data, secret=SECRET, **form)
    with pytest.raises(AuditError, match="holds 1 scans"):
        replay(replace(entry, scan=1), data, secret=SECRET, **form)


def command(*words: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(fedplatform, [str(word) for word in words])
    return done.exit_code, done.output


@pytest.mark.slow
def test_a_run_that_was_not_published_is_published_before_the_first_diagnosis(
    defended: Path, hospital: str, folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    shutil.copytree(defended, place)
    status, said = command("diagnose", place, folder, "--out", tmp_path / "answers.csv", "--hospital", hospital)
    assert status == 0, said
    assert "fitting hospital-00 (1 of 2)" in said
    assert set(read(tmp_path / "answers.csv")["model_version"]) == {"1"}


def test_a_folder_is_diagnosed_from_the_command_line_by_the_champion(
    published: Path, hospital: str, folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    shutil.copytree(published, place)
    words = ("diagnose", place, folder, "--out", tmp_path / "answers.csv")
    status, said = command(*words, "--hospital", hospital)
    assert status == 0, said
    assert "fitting" not in said, "what was published is opened"
    assert "26/26 files" in said
    assert set(read(tmp_path / "answers.csv")["model_version"]) == {"1"}
    assert "33 scans:" in said, "nine of them slices of the volume"
    assert "3 files refused" in said or "2 files refused" in said
    assert (place / "secrets" / f"{hospital}.secret").stat().st_mode & 0o777 == 0o600
    assert command(*words, "--hospital", hospital)[0] == 0
    less = ("diagnose", place, folder, "--out", tmp_path / "less.csv", "--hospital", hospital)
    assert "25 scans:" in command(*less, "--max-slices", "1")[1]
    assert "0 scans:" in command(*less[:4], tmp_path / "none.csv", *less[5:], "--max-bytes", "20")[1]
    status, said = command(*words, "--hospital", "hopsital_0")
    assert status == 1
    assert said.startswith("fedplatform: this version holds no model of 'hopsital_0'")


def test_keys_are_given_listed_and_revoked_from_the_command_line(tmp_path: Path) -> None:
    file = ("--keys", tmp_path / "keys.json")
    status, said = command("keys", "add", "lyon", *file)
    assert status == 0
    secret = said.splitlines()[0]
    assert secret.startswith("fed_")
    assert "shown once and expires on" in said
    key_id = secret.split("_")[1]
    assert "open" in command("keys", "list", *file)[1]
    assert str(today() + timedelta(days=365)) in command("keys", "list", *file)[1]
    status, said = command("keys", "add", "lyon", "--expires", "soon", *file)
    assert status == 1
    assert said == "fedplatform: a key expires on a day, as 2027-01-31, or never, got 'soon'\n"
    assert command("keys", "revoke", key_id, *file)[0] == 0
    assert "revoked" in command("keys", "list", *file)[1]
    status, said = command("keys", "revoke", "other", *file)
    assert status == 1
    assert said == f"fedplatform: no key 'other'; there are: {key_id}\n"


def test_a_log_is_verified_and_replayed_from_the_command_line(published: Path, hospital: str, tmp_path: Path) -> None:
    path, scan, secret = tmp_path / "audit.log", tmp_path / "scan.png", tmp_path / "noise.secret"
    scan.write_bytes(picture_bytes(scan_pixels(), "PNG"))
    secret.write_text(SECRET.hex())
    secret.chmod(0o600)
    bundle = bundle_of(RunVersions(published).folder("1"), hospital)
    entry = entry_of(bundle.defended(KeyedNoise(SECRET)), scan.read_bytes(), hospital, model_digest=bundle.digest)
    log = AuditLog(path)
    log.append(entry)
    anchor = str(log.append(replace(entry, label=1 - entry.label)))
    log.close()
    assert command("audit", "verify", path, "--anchor", anchor) == (0, f"2 lines, all whole\nanchor: {anchor}\n")
    words = ("audit", "replay", path, published, "--scan", scan, "--secret", secret)
    assert command(*words, "--line", "1") == (0, "line 1: the same answer\n")
    status, said = command(*words, "--line", "2")
    assert status == 1
    assert said == f"fedplatform: label was {1 - entry.label}, is {entry.label}\n"
    status, said = command("audit", "rotate", path, "--to", tmp_path / "old.log")
    assert status == 0
    assert said == f"old log: {tmp_path / 'old.log'}\nanchor: {anchor}\nnew log: {path}\n"
    assert f"it continues a log that ended with the anchor {anchor}" in command("audit", "verify", path)[1]
    path = tmp_path / "old.log"
    path.write_bytes(path.read_bytes().replace(b'"scan":0', b'"scan":1', 1))
    status, said = command("audit", "verify", path)
    assert status == 1
    assert "line 1 of" in said
    assert said.endswith("was changed: its hash is another\n")
    assert command("audit", "verify", path, "--anchor", "nonsense")[1].startswith("fedplatform: an anchor is")


def test_a_server_that_cannot_open_its_log_or_its_keys_says_why_in_one_line_before_ray_starts(
    published: Path, tmp_path: Path
) -> None:
    state, keys = tmp_path / "state", tmp_path / "keys.json"
    words = ("serve", published, "--state", state, "--port", "0")
    log = state / "serving" / "audit.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("buy milk\n")
    status, said = command(*words)
    assert (status, said.count("\n")) == (1, 1)
    assert "audit rotate" in said
    log.unlink()
    writer = AuditLog(log)
    status, said = command(*words)
    assert (status, said) == (1, f"fedplatform: {log} is being written by another process\n")
    writer.close()
    for fault, says in (("[", "is no file of keys"), (None, "may be read by others")):
        keys.write_text(fault or "[]")
        keys.chmod(0o600 if fault else 0o644)
        status, said = command(*words, "--keys", keys)
        assert (status, said.count("\n")) == (1, 1)
        assert says in said


def test_a_file_whose_header_names_another_kind_of_scan_is_referred_whatever_its_pixels_show(
    work: FolderDiagnosis, tmp_path: Path
) -> None:
    place = tmp_path / "scans"
    place.mkdir()
    for name, modality in (("same.dcm", "MR"), ("other.dcm", "CT")):
        (place / name).write_bytes(dicom_bytes(scan_pixels()))
        data = pydicom.dcmread(place / name)
        data.Modality = modality
        data.save_as(place / name)
    card = work.card.model_copy(update={"origins": (Origin("MR", "BRAIN"),)})
    table = replace(work, card=card).write(place, tmp_path / "answers.csv", progress=lambda *_: None)
    told = dict(zip(table["file"], table["referral"], strict=True))
    assert told["other.dcm"] == FOREIGN_HEADER
    assert told["same.dcm"] != FOREIGN_HEADER
