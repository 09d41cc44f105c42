from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hostile_uploads import (
    HostileUpload,
    dicom_bytes,
    hostile_uploads,
    nifti_bytes,
    picture_bytes,
    rle_frame,
    scan_pixels,
    volume_voxels,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from fedplatform.data.folders import FolderSource
from fedplatform.serving.intake import Limits, Refused, read_scans

TESTS = Path(__file__).parents[1]
PEAK_MIB = 512
WINDOW = {"RescaleSlope": 1, "RescaleIntercept": -1000, "WindowCenter": 40, "WindowWidth": 400}


def read(data: bytes, *, size: int = 24, channels: int = 1, slice_number: int | None = None) -> np.ndarray:
    return read_scans(data, size=size, channels=channels, limits=Limits(), slice_number=slice_number)


def refusal(data: bytes, *, limits: Limits | None = None, slice_number: int | None = None) -> Refused:
    with pytest.raises(Refused) as refused:
        read_scans(data, size=24, channels=1, limits=limits or Limits(), slice_number=slice_number)
    return refused.value


def hounsfield() -> np.ndarray:
    return (scan_pixels().astype(np.uint16) * 9 + 500).astype(np.uint16)


def noisy_colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8)


GOOD = {
    "grey.png": picture_bytes(scan_pixels(), "PNG"),
    "colour.png": picture_bytes(noisy_colours(), "PNG"),
    "sixteen_bits.png": picture_bytes(hounsfield(), "PNG"),
    "grey.jpg": picture_bytes(scan_pixels(), "JPEG"),
    "colour.jpg": picture_bytes(noisy_colours(), "JPEG", quality=90),
    "progressive.jpg": picture_bytes(noisy_colours(), "JPEG", progressive=True),
    "plain.dcm": dicom_bytes(scan_pixels()),
    "window.dcm": dicom_bytes(hounsfield(), **WINDOW),
    "sigmoid.dcm": dicom_bytes(hounsfield(), VOILUTFunction="SIGMOID", **WINDOW),
    "inverted.dcm": dicom_bytes(hounsfield(), PhotometricInterpretation="MONOCHROME1", **WINDOW),
    "own_range.dcm": dicom_bytes(hounsfield()),
    "frames.dcm": dicom_bytes(np.stack([hounsfield(), hounsfield()[::-1], hounsfield() // 2])),
    "implicit.dcm": dicom_bytes(hounsfield(), syntax=ImplicitVRLittleEndian, **WINDOW),
    "big_endian.dcm": dicom_bytes(hounsfield(), syntax=ExplicitVRBigEndian, **WINDOW),
    "deflated.dcm": dicom_bytes(hounsfield(), syntax=DeflatedExplicitVRLittleEndian, **WINDOW),
    "jpeg.dcm": dicom_bytes(scan_pixels(), syntax=JPEGBaseline8Bit, frames=[picture_bytes(scan_pixels(), "JPEG")]),
    "jpeg_2000.dcm": dicom_bytes(
        scan_pixels(), syntax=JPEG2000Lossless, frames=[picture_bytes(scan_pixels(), "JPEG2000", no_jp2=True)]
    ),
    "rle.dcm": dicom_bytes(scan_pixels(), syntax=RLELossless, frames=[rle_frame(scan_pixels())]),
    "volume.nii": nifti_bytes(volume_voxels()),
    "volume.nii.gz": gzip.compress(nifti_bytes(volume_voxels((10, 9, 8)))),
    "second.nii": nib.Nifti2Image(volume_voxels(), np.diag([-1.0, 1.0, 2.0, 1.0])).to_bytes(),
    "floats.nii.gz": gzip.compress(nifti_bytes(np.where(volume_voxels() > 900, np.nan, volume_voxels()).astype("f4"))),
    "turned.nii": nib.Nifti1Image(
        volume_voxels(), np.array([[0, 0, 2.0, 0], [0, -1, 0, 3], [1.5, 0, 0, 0], [0, 0, 0, 1]])
    ).to_bytes(),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", GOOD)
def test_a_scan_is_served_with_the_pixels_that_training_saw(tmp_path: Path, name: str, channels: int) -> None:
    (tmp_path / "ill").mkdir()
    (tmp_path / "ill" / name).write_bytes(GOOD[name])
    trained = np.concatenate(list(FolderSource(tmp_path, slices_per_volume=1).images(size=24, channels=channels)))
    served = read(GOOD[name], channels=channels)
    assert served.dtype == np.uint8
    assert np.array_equal(served, trained)
    assert len(np.unique(served)) > 10, "the scan is not flat, so equality means something"


def test_white_stays_white_whatever_the_photometric_interpretation() -> None:
    square = hounsfield()[:32]
    plain = read(dicom_bytes(square, **WINDOW), size=32)
    inverted = read(dicom_bytes(square, PhotometricInterpretation="MONOCHROME1", **WINDOW), size=32)
    assert np.array_equal(inverted, 255 - plain)


def test_the_kind_of_a_file_is_told_by_its_bytes_and_all_syntaxes_of_dicom_give_the_same_pixels() -> None:
    window = read(GOOD["window.dcm"])
    for name in ("implicit.dcm", "big_endian.dcm", "deflated.dcm"):
        assert np.array_equal(read(GOOD[name]), window), name
    for name in ("jpeg_2000.dcm", "rle.dcm"):
        assert np.array_equal(read(GOOD[name]), read(GOOD["plain.dcm"])), name


def test_all_frames_of_a_dicom_file_are_served_in_their_order() -> None:
    frames = read(GOOD["frames.dcm"], size=40)
    assert frames.shape == (3, 1, 40, 40)
    assert frames[0].mean() > frames[2].mean()


def test_the_central_slice_of_a_volume_is_served_unless_another_is_asked_for() -> None:
    data = gzip.compress(nifti_bytes(volume_voxels((8, 9, 7))))
    slices = [read(data, slice_number=number) for number in range(7)]
    assert np.array_equal(read(data), slices[3])
    assert len({one.tobytes() for one in slices}) == 7
    for number in (-1, 7, 10**9):
        assert refusal(data, slice_number=number).sentence == "The volume has slices 0 to 6."


def test_a_slice_number_for_what_has_no_slices_is_refused() -> None:
    for name in ("grey.png", "grey.jpg", "frames.dcm"):
        assert refusal(GOOD[name], slice_number=0).status == 422


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("grey.png", Limits(bytes=100)),
        ("grey.png", Limits(pixels=40 * 32 - 1)),
        ("grey.jpg", Limits(pixels=40 * 32 - 1)),
        ("frames.dcm", Limits(pixels=3 * 40 * 32 - 1)),
        ("frames.dcm", Limits(scans=2)),
        ("deflated.dcm", Limits(pixels=40 * 32 - 1)),
        ("volume.nii.gz", Limits(pixels=10 * 9 * 8 - 1)),
    ],
)
def test_a_scan_that_is_a_little_over_a_limit_is_too_large(name: str, limits: Limits) -> None:
    assert refusal(GOOD[name], limits=limits).status == 413


def test_a_scan_exactly_at_the_limits_is_served() -> None:
    exact = Limits(bytes=len(GOOD["frames.dcm"]), pixels=3 * 40 * 32, scans=3)
    assert len(read_scans(GOOD["frames.dcm"], size=8, channels=1, limits=exact)) == 3


def test_every_hostile_upload_is_refused_in_one_sentence_that_says_nothing_of_the_server() -> None:
    count = 0
    for upload in hostile_uploads():
        refused = refusal(upload.data)
        assert 400 <= refused.status < 500, upload.name
        assert one_sentence(refused.sentence), f"{upload.name}: {refused.sentence}"
        count += 1
    assert count >= 200


def one_sentence(text: str) -> bool:
    inside = text.removesuffix(".").replace(",", "")
    return text.endswith(".") and "\n" not in text and not set('/\\<>[]{}"') & set(inside) and len(text) < 160


def test_hostile_uploads_are_the_same_at_every_call_and_each_has_its_own_name() -> None:
    def first(n: int) -> list[HostileUpload]:
        return [upload for upload, _ in zip(hostile_uploads(), range(n), strict=False)]

    assert first(150) == first(150)
    names = [upload.name for upload in hostile_uploads()]
    assert len(names) == len(set(names))


WATCHED = """
import re, sys
from pathlib import Path
sys.path.insert(0, "tests/helpers")
from hostile_uploads import hostile_uploads, picture_bytes, scan_pixels
from fedplatform.serving.intake import Limits, Refused, read_scans

for upload in hostile_uploads():
    try:
        read_scans(upload.data, size=24, channels=1, limits=Limits())
    except Refused:
        pass
assert len(read_scans(picture_bytes(scan_pixels(), "PNG"), size=24, channels=1, limits=Limits())) == 1
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux")
def test_all_hostile_uploads_together_take_less_than_half_a_gigabyte_and_a_good_one_is_served_after_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED], cwd=TESTS.parent, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a library quoted an upload in the server's log"
    assert int(done.stdout) < PEAK_MIB


def only_refused(data: bytes, *, slice_number: int | None = None) -> None:
    limits = Limits(bytes=10**6, pixels=10**6, scans=4)
    answer: np.ndarray | Refused
    try:
        answer = read_scans(data, size=8, channels=1, limits=limits, slice_number=slice_number)
    except Refused as refused:
        answer = refused
    if isinstance(answer, Refused):
        assert 400 <= answer.status < 500
        assert one_sentence(answer.sentence)
    else:
        assert answer.dtype == np.uint8
        assert answer.shape[1:] == (1, 8, 8)


BEGINNINGS = [
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    bytes(128) + b"DICM",
    b"\x1f\x8b\x08",
    GOOD["volume.nii"][:348],
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BEGINNINGS), st.binary(max_size=600), st.none() | st.integers())
def test_whatever_the_bytes_are_nothing_but_a_refusal_is_raised(
    start: bytes, rest: bytes, slice_number: int | None
) -> None:
    only_refused(start + rest, slice_number=slice_number)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_a_scan_of_which_any_bytes_are_changed_is_refused_or_served(name: str, data: st.DataObject) -> None:
    changed = bytearray(GOOD[name])
    # Headers are where the lies are, so half of the changes go there.
    places = st.integers(0, len(changed) - 1) | st.integers(0, min(len(changed), 700) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)):
        changed[place] = value
    only_refused(bytes(changed))
    only_refused(bytes(changed[: data.draw(st.integers(0, len(changed)))]))


def test_a_colour_scan_in_a_dicom_file_keeps_its_colours() -> None:
    pixels = noisy_colours()
    data = dicom_bytes(
        pixels[:, :, 0],
        syntax=ExplicitVRLittleEndian,
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        PixelData=pixels.tobytes() + b"\x00" * (pixels.size % 2),
    )
    assert np.array_equal(read(data, channels=3), read(GOOD["colour.png"], channels=3))
