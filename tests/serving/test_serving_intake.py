from __future__ import annotations

import gzip
import logging
import struct
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import imagecodecs
import nibabel as nib
import numpy as np
import pydicom
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
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from fedplatform.data.folders import FolderSource
from fedplatform.serving.intake import Limits, Refused, read_scans
from fedplatform.serving.refused import MEBIBYTE

TESTS = Path(__file__).parents[1]
PEAK_MIB = 512
CUT = "The DICOM file is broken or cut short."
VOLUME_CUT = "The NIfTI volume is broken or cut short."
WINDOW = {"RescaleSlope": 1, "RescaleIntercept": -1000, "WindowCenter": 40, "WindowWidth": 400}


def read(
    data: bytes, *, size: int = 24, channels: int = 1, slice_number: int | None = None, slices: int = 1
) -> np.ndarray:
    return read_scans(data, size=size, channels=channels, limits=Limits(slices=slices), slice_number=slice_number)


def refusal(data: bytes, *, limits: Limits | None = None, slice_number: int | None = None) -> Refused:
    with pytest.raises(Refused) as refused:
        read_scans(data, size=24, channels=1, limits=limits or Limits(), slice_number=slice_number)
    return refused.value


def hounsfield() -> np.ndarray:
    return (scan_pixels().astype(np.uint16) * 9 + 500).astype(np.uint16)


def noisy_colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8)


def smooth_colours(depth: type[np.unsignedinteger] = np.uint8) -> np.ndarray:
    """Colours (40, 32, 3), of 12 bits where there is room for them."""
    layers = np.stack([scan_pixels(), scan_pixels()[::-1], scan_pixels()[:, ::-1]], axis=2)
    return layers if depth is np.uint8 else layers.astype(depth) * 16


def even(frame: bytes) -> bytes:
    return frame + bytes(len(frame) % 2)


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
    "jp2_boxes.dcm": dicom_bytes(
        scan_pixels(), syntax=JPEG2000Lossless, frames=[even(picture_bytes(scan_pixels(), "JPEG2000"))]
    ),
    "lossless.dcm": dicom_bytes(
        hounsfield(), syntax=JPEGLosslessSV1, frames=[even(imagecodecs.jpeg8_encode(hounsfield(), lossless=True))]
    ),
    "jpeg_ls.dcm": dicom_bytes(
        hounsfield(), syntax=JPEGLSLossless, frames=[even(imagecodecs.jpegls_encode(hounsfield()))]
    ),
    "htj2k.dcm": dicom_bytes(hounsfield(), syntax=HTJ2KLossless, frames=[even(imagecodecs.htj2k_encode(hounsfield()))]),
    "twelve_bits.dcm": dicom_bytes(
        hounsfield(),
        syntax=JPEGExtended12Bit,
        frames=[even(imagecodecs.jpeg8_encode(hounsfield(), level=95, bitspersample=12))],
        BitsStored=12,
        HighBit=11,
    ),
    "without_preamble.dcm": dicom_bytes(hounsfield(), **WINDOW)[132:],
    "colour_16.png": bytes(imagecodecs.png_encode(smooth_colours(np.uint16))),
    "grey.tif": picture_bytes(scan_pixels(), "TIFF"),
    "sixteen_bits.tif": picture_bytes(hounsfield(), "TIFF"),
    "colour_16.tif": bytes(imagecodecs.tiff_encode(smooth_colours(np.uint16), photometric="rgb")),
    "grey.bmp": picture_bytes(scan_pixels(), "BMP"),
    "colour.webp": picture_bytes(smooth_colours(), "WEBP"),
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
    for name in ("jpeg_2000.dcm", "jp2_boxes.dcm", "rle.dcm"):
        assert np.array_equal(read(GOOD[name]), read(GOOD["plain.dcm"])), name
    for name in ("lossless.dcm", "jpeg_ls.dcm", "htj2k.dcm"):
        assert np.array_equal(read(GOOD[name]), read(GOOD["own_range.dcm"])), name
    assert np.abs(read(GOOD["twelve_bits.dcm"]).astype(int) - read(GOOD["own_range.dcm"])).max() <= 3
    assert np.array_equal(read(GOOD["without_preamble.dcm"]), window)


def test_all_frames_of_a_dicom_file_are_served_in_their_order() -> None:
    frames = read(GOOD["frames.dcm"], size=40)
    assert frames.shape == (3, 1, 40, 40)
    assert frames[0].mean() > frames[2].mean()


def test_central_slices_of_a_volume_are_served_unless_one_is_asked_for() -> None:
    data = gzip.compress(nifti_bytes(volume_voxels((8, 9, 7))))
    slices = [read(data, slice_number=number) for number in range(7)]
    assert np.array_equal(read(data, slices=1), slices[3])
    assert np.array_equal(read(data, slices=3), np.concatenate(slices[2:5]))
    assert np.array_equal(read(data, slices=16), np.concatenate(slices))
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


def digest_of(upload: HostileUpload) -> tuple[str, str]:
    return upload.name, sha256(upload.data).hexdigest()


def test_every_hostile_upload_is_refused_in_one_sentence_that_says_nothing_of_the_server() -> None:
    seen = []
    for upload in hostile_uploads():
        refused = refusal(upload.data)
        assert 400 <= refused.status < 500, upload.name
        assert one_sentence(refused.sentence), f"{upload.name}: {refused.sentence}"
        seen.append(digest_of(upload))
    assert len(seen) >= 200
    assert len({name for name, _ in seen}) == len(seen)
    assert [digest_of(upload) for upload in hostile_uploads()] == seen, "they are the same at every call"


def one_sentence(text: str) -> bool:
    inside = text.removesuffix(".").replace(",", "")
    return text.endswith(".") and "\n" not in text and not set('/\\<>[]{}"') & set(inside) and len(text) < 160


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


def test_what_stands_behind_the_pixels_of_a_dicom_file_is_never_read() -> None:
    for name in ("window.dcm", "implicit.dcm"):
        for behind in (b"\xff" * 100, GOOD["window.dcm"][132:]):
            assert np.array_equal(read(GOOD[name] + behind), read(GOOD[name]))


@pytest.mark.parametrize("length", [1_000, MEBIBYTE - 2_000, MEBIBYTE + 2_000])
def test_the_header_of_a_dicom_file_may_be_as_long_as_its_limit(length: int) -> None:
    def padded(data: pydicom.Dataset) -> None:
        data.add_new(0x00091010, "OB", bytes(length))

    data = dicom_bytes(hounsfield(), change=padded, **WINDOW)
    assert np.array_equal(read(data), read(GOOD["window.dcm"])), "eight of them by default"
    if length > MEBIBYTE:
        refused = refusal(data, limits=Limits(header=MEBIBYTE))
        assert (refused.status, refused.sentence) == (
            413,
            "The DICOM file's header is too long: 1,048,576 bytes and 100,000 elements are allowed.",
        )


def test_a_dicom_file_without_a_picture_or_without_its_end_says_so() -> None:
    refused = refusal(dicom_bytes(scan_pixels(), change=lambda data: delattr(data, "PixelData")))
    assert (refused.status, refused.sentence) == (422, "The DICOM file holds no picture.")
    without_its_end = refusal(GOOD["deflated.dcm"][:-2])
    assert (without_its_end.status, without_its_end.sentence) == (400, CUT)


def test_a_deflated_dicom_file_is_inflated_as_far_as_its_pixels_may_go() -> None:
    wide = np.repeat(np.arange(1000, dtype=np.uint16)[None], 1000, axis=0)
    data = dicom_bytes(wide, syntax=DeflatedExplicitVRLittleEndian)
    assert read_scans(data, size=4, channels=1, limits=Limits(pixels=10**6)).shape == (1, 1, 4, 4)
    for limits, says in (
        (Limits(pixels=10**6 - 1), "The picture is too large: an upload may have 999,999 pixels."),
        (Limits(picture=10**6 - 1), "The picture is too large: one may have 999,999 pixels."),
        (Limits(bytes=2 * 10**6), "The DICOM file is too large: it may inflate to 2,000,000 bytes."),
    ):
        refused = refusal(data, limits=limits)
        assert (refused.status, refused.sentence) == (413, says)


@pytest.mark.parametrize(("samples", "given"), [(1, (3, 40, 32)), (3, (2, 40, 32, 3))])
def test_frames_are_counted_before_they_are_decoded(samples: int, given: tuple[int, ...]) -> None:
    pixels = np.broadcast_to(scan_pixels() if samples == 1 else smooth_colours(), given)
    kind = {"PhotometricInterpretation": "RGB", "PlanarConfiguration": 0} if samples == 3 else {}
    first = pixels if samples == 1 else pixels[..., 0]
    data = dicom_bytes(first, SamplesPerPixel=samples, PixelData=pixels.tobytes(), **kind)
    exact = Limits(pixels=given[0] * 40 * 32, scans=given[0])
    served = read_scans(data, size=8, channels=samples, limits=exact)
    assert served.shape == (given[0], samples, 8, 8)
    too_many = refusal(data, limits=Limits(scans=given[0] - 1))
    assert too_many.sentence == f"The DICOM file holds too many frames: {given[0] - 1} are allowed."
    assert too_many.status == 413
    assert refusal(data, limits=Limits(pixels=given[0] * 40 * 32 - 1)).status == 413


def test_two_compressed_frames_are_served_in_their_order_and_a_third_is_refused() -> None:
    pictures = [scan_pixels(), scan_pixels()[::-1].copy(), scan_pixels()[:, ::-1].copy()]
    for syntax, frames in (
        (JPEG2000Lossless, [picture_bytes(picture, "JPEG2000", no_jp2=True) for picture in pictures]),
        (RLELossless, [rle_frame(picture) for picture in pictures]),
    ):
        two = dicom_bytes(np.stack(pictures[:2]), syntax=syntax, frames=frames[:2])
        assert np.array_equal(read(two), np.concatenate([read(dicom_bytes(picture)) for picture in pictures[:2]]))
        three = refusal(dicom_bytes(np.stack(pictures[:2]), syntax=syntax, frames=frames))
        assert (three.status, three.sentence) == (422, "The DICOM file holds more frames than its header says.")


NOT_WHAT_IT_SAYS = "The DICOM file's compressed frames are not what its header says."


def rle_of(segment: bytes) -> bytes:
    """A DICOM file of 40 x 32 whose one RLE frame has this segment."""
    header = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56)
    return dicom_bytes(scan_pixels(), syntax=RLELossless, frames=[header + segment])


def test_an_rle_segment_is_as_long_as_the_picture_or_one_byte_longer() -> None:
    repeated = bytes([129, 7])  # 257 - 129: 128 times the byte 7
    literal = bytes([127]) + bytes(range(128))
    runs = np.frombuffer(bytes([7]) * 1024 + bytes(range(128)) * 2, np.uint8).reshape(40, 32)
    assert np.array_equal(read(rle_of(repeated * 8 + literal * 2)), read(dicom_bytes(runs)))
    mixed = np.frombuffer(bytes(range(128)) * 5 + bytes([7]) * 640, np.uint8).reshape(40, 32)
    assert np.array_equal(read(rle_of(literal * 5 + repeated * 5)), read(dicom_bytes(mixed)))
    nothing = bytes([128])  # says nothing, PS3.5, G.3.1
    assert np.array_equal(
        read(rle_of(nothing * 2 + literal * 5 + nothing * 3000 + repeated * 5)), read(dicom_bytes(mixed))
    )
    # One byte more, as a literal and as a run, is padding; with two the segment runs on.
    for one_more, two_more in ((bytes([0, 9]), bytes([1, 9, 9])), (bytes([0, 9]), bytes([255, 9]))):
        padded = refusal_or_scan(rle_of(repeated * 8 + literal * 2 + one_more))
        assert not isinstance(padded, Refused) or padded.sentence != NOT_WHAT_IT_SAYS
        too_long = refusal(rle_of(repeated * 8 + literal * 2 + two_more))
        assert (too_long.status, too_long.sentence) == (422, NOT_WHAT_IT_SAYS)


def refusal_or_scan(data: bytes) -> Refused | np.ndarray:
    try:
        return read(data)
    except Refused as refused:
        return refused


@pytest.mark.parametrize("count", [0, 16, 2**32 - 1])
def test_an_rle_frame_has_one_to_fifteen_segments(count: int) -> None:
    frame = count.to_bytes(4, "little") + rle_frame(scan_pixels())[4:]
    refused = refusal(dicom_bytes(scan_pixels(), syntax=RLELossless, frames=[frame]))
    assert (refused.status, refused.sentence) == (400, CUT)
    short = refusal(dicom_bytes(scan_pixels(), syntax=RLELossless, frames=[rle_frame(scan_pixels())[:62]]))
    assert (short.status, short.sentence) == (400, CUT)


@pytest.mark.parametrize(
    ("width", "height", "side", "allowed"),
    [
        (64, 64, 1, True),
        (65, 64, 1, False),
        (64, 65, 1, False),
        (128, 128, 2, True),
        (127, 129, 2, False),
        (129, 127, 2, False),
        (64, 64, 0, True),
        (65, 64, 0, False),
    ],
)
def test_a_jpeg_2000_frame_of_more_than_4096_tiles_is_refused(
    width: int, height: int, side: int, allowed: bool
) -> None:
    # ISO/IEC 15444-1, A.5.1: XTsiz and YTsiz stand at 24 and 28; a side of 0 is none, and counts as 1.
    pixels = scan_pixels(height, width)
    frame = picture_bytes(pixels, "JPEG2000", no_jp2=True)
    stated = frame[:24] + side.to_bytes(4, "big") * 2 + frame[32:]
    answer = refusal_or_scan(dicom_bytes(pixels, syntax=JPEG2000Lossless, frames=[stated]))
    assert (isinstance(answer, Refused) and answer.sentence == NOT_WHAT_IT_SAYS) is not allowed


def passes(count: int) -> bytes:
    """A JPEG with so many markers of a pass over the picture, all but one of them behind its end."""
    return GOOD["grey.jpg"] + b"\xff\xda" * (count - 1)


def test_a_jpeg_passes_over_its_picture_at_most_64_times() -> None:
    assert np.array_equal(read(passes(64)), read(GOOD["grey.jpg"]))
    refused = refusal(passes(65))
    assert (refused.status, refused.sentence) == (422, "The JPEG passes over its picture more than 64 times.")
    for count, says in ((64, ""), (65, NOT_WHAT_IT_SAYS)):
        frame = passes(count)
        answer = refusal_or_scan(
            dicom_bytes(scan_pixels(), syntax=JPEGBaseline8Bit, frames=[frame + b"\x00" * (len(frame) % 2)])
        )
        assert (answer.sentence if isinstance(answer, Refused) else "") == says


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"PK\x03\x04", "a ZIP archive"),
        (b"GIF87a", "a GIF"),
        (b"%PDF-1.7", "a PDF"),
        (b"\x7fELF", "a program"),
        (b"MZ", "a program"),
        (b"#!/bin/sh", "a program"),
        (b"RIFF", "a RIFF file that is no WebP"),
        (b"Rar!", "a RAR archive"),
        (b"7z\xbc\xaf", "a 7z archive"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x93NUMPY", "a NumPy file"),
        (b"PAR1", "a Parquet file"),
        (b'{"image": 1}', "JSON"),
        (b"  \n<SVG ", "an SVG or XML file"),
        (b"\xef\xbb\xbf<?xml ", "an SVG or XML file"),
        (b"<!DOCTYPE svg", "an SVG or XML file"),
        (b"<html>", "an HTML page"),
        (b"<!doctype html>", "an HTML page"),
        (b"<img src=x>", "an HTML page"),
        (b"hello", "of no kind that is read here"),
        (b"BMI of all patients", "of no kind that is read here"),
        (struct.pack("<i", 348) + bytes(344), "of no kind that is read here"),
        (struct.pack("<i", 349) + bytes(340) + b"n+1\x00", "of no kind that is read here"),
        (struct.pack("<i", 348) + bytes(340) + b"ni1\x00", "of no kind that is read here"),
        (struct.pack("<i", 540) + bytes(540), "of no kind that is read here"),
        (struct.pack("<i", 541) + b"n+2\x00\r\n\x1a\n" + bytes(540), "of no kind that is read here"),
    ],
)
def test_who_sends_something_else_is_told_what_it_is(start: bytes, kind: str) -> None:
    refused = refusal(start + b"\x00" * 20)
    assert refused.status == 415
    assert refused.sentence == f"This is {kind}; send a PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI file."


def test_nothing_and_a_gzip_archive_of_something_else_are_refused_by_name() -> None:
    empty = refusal(b"")
    assert (empty.status, empty.sentence) == (400, "The upload is empty.")
    assert refusal(gzip.compress(GOOD["grey.png"])).sentence.startswith("This is a gzip archive of something")
    assert refusal(gzip.compress(GOOD["grey.png"])).status == 415
    for name, kind in (
        *(("grey.png", "PNG"), ("grey.jpg", "JPEG"), ("grey.tif", "TIFF"), ("grey.bmp", "BMP")),
        ("colour.webp", "WebP"),
    ):
        broken = refusal(GOOD[name][: len(GOOD[name]) * 9 // 10])
        assert (broken.status, broken.sentence) == (400, f"The {kind} is broken or cut short.")


def test_the_libraries_may_warn_again_when_the_upload_is_read() -> None:
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel.global")]
    read(GOOD["window.dcm"])
    assert [logger.disabled for logger in loggers] == [False, False]
    loggers[1].disabled = True
    try:
        refusal(GOOD["window.dcm"][:500])
        assert [logger.disabled for logger in loggers] == [False, True]
    finally:
        loggers[1].disabled = False


def big_endian(volume: np.ndarray) -> bytes:
    return nib.Nifti1Image(
        volume.astype(volume.dtype.newbyteorder(">")), np.eye(4), nib.Nifti1Header(endianness=">")
    ).to_bytes()


def test_a_volume_of_either_byte_order_is_the_same_volume() -> None:
    volume = volume_voxels()
    little = nib.Nifti1Image(volume, np.eye(4)).to_bytes()
    assert big_endian(volume)[:4] == (348).to_bytes(4, "big")
    assert np.array_equal(read(big_endian(volume)), read(little))


def test_the_voxels_of_a_volume_begin_within_a_mebibyte_and_end_with_the_file() -> None:
    def begins(at: int) -> bytes:
        return (
            GOOD["volume.nii"][:108]
            + struct.pack("<f", at)
            + GOOD["volume.nii"][112:352]
            + bytes(at - 352)
            + (GOOD["volume.nii"][352:])
        )

    for at in (352, 4096, MEBIBYTE):
        assert np.array_equal(read(begins(at)), read(GOOD["volume.nii"]))
    too_far = refusal(begins(MEBIBYTE + 16), limits=Limits(header=MEBIBYTE))
    assert (too_far.status, too_far.sentence) == (
        413,
        "The NIfTI volume's header is too long: 1,048,576 bytes are allowed.",
    )
    whole = GOOD["volume.nii"]
    assert np.array_equal(read(whole + b"more"), read(whole))
    assert (refusal(whole[:-1]).status, refusal(whole[:-1]).sentence) == (400, VOLUME_CUT)
    for cut in (gzip.compress(whole[:-1]), gzip.compress(whole)[:-9]):
        assert (refusal(cut).status, refusal(cut).sentence) == (400, VOLUME_CUT)
    for padding in (1, 512, 65_536):
        assert np.array_equal(read(gzip.compress(whole + bytes(padding))), read(whole))
        assert np.array_equal(read(gzip.compress(whole) + bytes(padding)), read(whole))
    for more in (b"x", bytes(100) + b"x", bytes(65_537)):
        longer = refusal(gzip.compress(whole + more))
        assert (longer.status, longer.sentence) == (413, "The NIfTI volume goes on behind its last voxel.")


def test_a_volume_of_one_moment_is_served_and_of_several_moments_colours_or_no_number_refused() -> None:
    volume = volume_voxels()
    assert np.array_equal(read(nifti_bytes(volume[..., None])), read(nifti_bytes(volume)))
    for other, says in (
        (np.stack([volume, volume], axis=3), "A NIfTI file must hold one volume of three dimensions."),
        (volume[:, :, 0], "A NIfTI file must hold one volume of three dimensions."),
        (volume.astype(np.complex64), "The voxels of a NIfTI volume must be real numbers."),
        (
            np.full(volume.shape, np.nan, np.float32),
            "The NIfTI volume holds no picture: no finite voxel, or no orientation.",
        ),
    ):
        for data in (nifti_bytes(other), gzip.compress(nifti_bytes(other))):
            assert (refusal(data).status, refusal(data).sentence) == (422, says)
    for kind in (np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64):
        assert np.array_equal(
            read(nifti_bytes(volume.astype(kind))), read(nifti_bytes((volume % 256) if kind is np.uint8 else volume))
        )


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_of_an_even_number_of_slices_the_lower_of_the_two_in_the_middle_is_served(depth: int) -> None:
    data = nifti_bytes(volume_voxels((8, 9, depth)))
    assert np.array_equal(read(data), read(data, slice_number=(depth - 1) // 2))
    assert refusal(data, slice_number=depth).sentence == f"The volume has slices 0 to {depth - 1}."
    assert refusal(data, slice_number=-1).status == 422


@pytest.mark.parametrize(
    ("shape", "pictures", "status"),
    [((0, 5), 1, 422), ((5, 0), 1, 422), ((5, 5), 0, 422), ((1, 1), 1, 0), ((32_768, 1), 1, 0), ((1, 32_769), 1, 413),
     ((10, 10), 1, 0), ((10, 10), 4, 0), ((10, 11), 4, 413), ((10, 10, 10), 1, 413)],
)  # fmt: skip
def test_a_shape_is_within_the_limits_up_to_the_last_pixel(shape: tuple[int, ...], pictures: int, status: int) -> None:
    limits = Limits(pixels=400 if max(shape) < 100 else 10**6)
    if not status:
        limits.check(*shape, pictures=pictures)
        return
    with pytest.raises(Refused) as refused:
        limits.check(*shape, pictures=pictures)
    assert refused.value.status == status


def wide(height: int, width: int) -> np.ndarray:
    """A smooth picture of 12 bits (h, w)."""
    rows, columns = np.arange(height, dtype=np.uint16)[:, None] // 8, np.arange(width, dtype=np.uint16) // 8
    return (rows + columns).astype(np.uint16)


@pytest.mark.parametrize("kind", ["a mammogram", "an enhanced MR of 200 frames", "a CT of 400 slices", "its gzip file"])
def test_the_default_limits_let_large_scans_pass(kind: str) -> None:
    if kind == "a mammogram":
        data, scans = dicom_bytes(wide(4096, 3328), BitsStored=12, HighBit=11), 1
    elif kind == "an enhanced MR of 200 frames":
        groups = [functional_groups() for _ in range(200)]
        frames = np.broadcast_to(wide(256, 256), (200, 256, 256))
        data, scans = dicom_bytes(frames, PerFrameFunctionalGroupsSequence=groups), 200
    else:
        volume = np.broadcast_to(wide(512, 512).astype(np.int16)[..., None], (512, 512, 400))
        data, scans = nifti_bytes(np.asfortranarray(volume)), 16
        data = gzip.compress(data, 1) if kind == "its gzip file" else data
    assert len(read_scans(data, size=8, channels=1, limits=Limits())) == scans


def functional_groups() -> pydicom.Dataset:
    """One frame's, with as many elements as a scanner writes."""
    groups = pydicom.Dataset()
    window = pydicom.Dataset()
    window.WindowCenter, window.WindowWidth = 30, 60
    groups.FrameVOILUTSequence = [window]
    private = groups.private_block(0x0011, "A SCANNER", create=True)
    for number in range(100):
        private.add_new(number, "DS", "1.5")
    return groups
