"""Files that readers get wrong: tests/cases holds one of each kind, the siblings are made here."""

from __future__ import annotations

import gzip
import io
import warnings
from pathlib import Path

import imagecodecs
import nibabel as nib
import numpy as np
import pydicom
import pytest
from hostile_uploads import dicom_bytes, nifti_bytes, picture_bytes, scan_pixels
from PIL import Image, TiffImagePlugin
from pydicom.dataset import Dataset
from pydicom.uid import JPEGBaseline8Bit

from fedplatform.data.aspect import square_pixels
from fedplatform.data.dicom import read_dicom, read_dicom_header
from fedplatform.data.error import DataError
from fedplatform.data.folders import FolderSource
from fedplatform.data.nifti import read_slices
from fedplatform.data.pictures import count_pages, decode, decode_pages
from fedplatform.serving.intake import Limits, Refused, Study, read_study

CASES = Path(__file__).parents[1] / "cases"
GREY_LEVELS = 3


def served(
    data: bytes | str, *, size: int = 256, limits: Limits | None = None, slice_number: int | None = None
) -> Study:
    """What the endpoint reads of a case or of bytes."""
    whole = (CASES / data).read_bytes() if isinstance(data, str) else data
    return read_study(whole, size=size, channels=1, limits=limits or Limits(), slice_number=slice_number)


def refused(data: bytes | str) -> str:
    with pytest.raises(Refused) as refusal:
        served(data)
    return refusal.value.sentence


def dicom(folder: Path, data: bytes) -> list[np.ndarray]:
    """The frames that training reads of the bytes of a DICOM file."""
    path = folder / "scan.dcm"
    path.write_bytes(data)
    return read_dicom(path)


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("black.png", "The picture is blank: all of its pixels are alike."),
        ("white.png", "The picture is blank: all of its pixels are alike."),
        ("noise.png", "The picture is noise: its pixels have nothing to do with their neighbours."),
        ("one-pixel.png", "The picture is too small: a side must have 8 pixels at least."),
        ("htj2k.dcm", "The DICOM file's compressed frames are not what its header says."),  # holds a hundred zeros
    ],
)
def test_what_shows_nothing_is_refused_in_one_sentence(name: str, says: str) -> None:
    assert refused(name) == says


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("rgb16-12bit.png", "grey16-12bit.png"),
        ("la16-12bit.png", "grey16-12bit.png"),
        ("with-7fe0-0000.dcm", "empty-rescale.dcm"),
        ("packed-12.dcm", "empty-rescale.dcm"),
        ("no-preamble-implicit.dcm", "empty-rescale.dcm"),
        ("rle-extended-offset-table.dcm", "plain.png"),
        ("j2k-with-jp2-boxes.dcm", "plain.png"),
        ("empty-window.dcm", "grey16-12bit.png"),
        ("trailing-padding.nii.gz", "plain.nii.gz"),
    ],
)
def test_the_same_scan_in_another_file_is_read_the_same(name: str, same_as: str) -> None:
    assert np.array_equal(served(name).scans, served(same_as).scans)


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("*.dcm") if path.stem != "htj2k"))
def test_a_dicom_file_is_served_as_it_trains(name: str) -> None:
    trained = read_dicom(CASES / name)
    assert np.array_equal(served(name).scans[:, 0], np.stack(trained))
    assert read_dicom_header(CASES / name).frames == len(trained)


def test_an_exif_orientation_is_obeyed() -> None:
    assert apart(served("exif6.jpg").scans, served("plain.png").scans) <= 8, "the same scan, but for the compression"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "16-bit colours"])
def test_each_orientation_gives_the_same_upright_picture(orientation: int, kind: str) -> None:
    ways = {2: np.fliplr, 3: lambda p: p[::-1, ::-1], 4: np.flipud, 5: lambda p: p.swapaxes(0, 1)}
    ways |= {6: lambda p: np.rot90(p, 1), 7: lambda p: np.rot90(p, 2).swapaxes(0, 1), 8: lambda p: np.rot90(p, -1)}
    stored = np.ascontiguousarray(ways.get(orientation, np.asarray)(scan_pixels(64, 48)))  # as the camera was held
    exif = Image.Exif()
    exif[274] = orientation
    if kind == "16-bit colours":
        deep = np.stack([stored.astype(np.uint16) * 16, stored.astype(np.uint16) * 8, stored], axis=2)
        whole = picture_bytes(stored, "PNG", exif=exif)
        chunk = whole[whole.index(b"eXIf") - 4 : whole.index(b"IDAT") - 4]
        png = bytes(imagecodecs.png_encode(deep))
        upright = decode(png[:33] + chunk + png[33:], name="x")[..., 0]
        expected = decode(
            bytes(imagecodecs.png_encode(np.stack([scan_pixels(64, 48).astype(np.uint16)] * 3, 2))), name="x"
        )
        assert upright.shape == expected.shape
        assert np.corrcoef(upright.ravel(), expected.ravel())[0, 1] > 0.99
    else:
        lossless = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
        upright = decode(picture_bytes(stored, kind, exif=exif, **lossless), name="x")
        assert apart(upright if upright.ndim == 2 else upright[..., 0], scan_pixels(64, 48)) <= 8


def test_what_alpha_hides_is_black(tmp_path: Path) -> None:
    shown = served("alpha-hidden-white.png").scans[0, 0]
    with Image.open(CASES / "alpha-hidden-white.png") as image:
        grey, alpha = (np.asarray(layer, np.float64) for layer in image.split())
    assert apart(shown, np.rint(grey * alpha / 255)) <= 1
    assert (grey[alpha == 0] == 255).any()
    assert shown[alpha == 0].max() == 0
    hidden = np.full((16, 16, 4), 65535, np.uint16)
    hidden[:8, :, 3] = 0
    hidden[8:, :8, :3] = 1000
    deep = decode(bytes(imagecodecs.png_encode(hidden)), name="x")
    assert deep[:8].max() == 0
    assert deep[8:, 8:].min() == 255
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 2).convert("P")
    palette.putpalette([255, 255, 255, 9, 9, 9])
    stream = io.BytesIO()
    palette.save(stream, "PNG", transparency=0)
    assert decode(stream.getvalue(), name="x").max() == 9


@pytest.mark.parametrize(
    ("kind", "channels"), [("png", 1), ("png", 2), ("png", 3), ("png", 4), ("tiff", 1), ("tiff", 3), ("tiff", 4)]
)
def test_sixteen_bits_are_read_in_full_for_any_number_of_channels(channels: int, kind: str) -> None:
    grey = scan_pixels().astype(np.uint16) * 16
    layers = [grey] * (channels - (channels in (2, 4))) + [np.full_like(grey, 65535)] * (channels in (2, 4))
    deep = grey if channels == 1 else np.stack(layers, axis=2)
    if kind == "png":
        data = bytes(imagecodecs.png_encode(deep))
    else:
        data = bytes(imagecodecs.tiff_encode(deep, photometric="rgb" if channels > 2 else "minisblack"))
    alone = decode(bytes(imagecodecs.png_encode(grey)), name="x")
    assert np.array_equal(decode(data, name="x"), alone)
    assert alone.max() == 255


def test_a_hot_pixel_does_not_darken_a_scan_of_more_than_eight_bits(tmp_path: Path) -> None:
    grey = scan_pixels(64, 64).astype(np.uint16) * 10
    hot = grey.copy()
    hot[5, 5] = 65535
    for plain, spoilt in (
        (picture_bytes(grey, "PNG"), picture_bytes(hot, "PNG")),
        (picture_bytes(grey, "TIFF"), picture_bytes(hot, "TIFF")),
        (dicom_bytes(grey), dicom_bytes(hot)),
        (nifti_bytes(grey[..., None]), nifti_bytes(hot[..., None])),
        *((bytes(imagecodecs.png_encode(np.stack([p, p // 2, p // 3], 2))) for p in (grey, hot)),),
    ):
        one, other = (served(data, size=64).scans[0, 0].astype(int) for data in (plain, spoilt))
        away = np.abs(one - other) > GREY_LEVELS
        assert away.sum() <= 1, "the hot pixel itself"


def test_all_pages_of_a_tiff_are_read_but_no_thumbnail(tmp_path: Path) -> None:
    pages = [Image.fromarray(scan_pixels()[:, ::step].copy()) for step in (1, -1)]
    stream = io.BytesIO()
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
    stack = stream.getvalue()
    assert [page.shape for page in decode_pages(stack, name="x")] == [(40, 32)] * 2
    assert apart(served(stack, size=32).scans[0], served(stack, size=32).scans[1][:, :, ::-1]) <= 1
    for patient, kind in enumerate("ab"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{patient}.tif").write_bytes(stack)
    source = FolderSource(tmp_path)
    assert source.index().column("group").to_pylist() == [0, 0, 1, 1]
    assert sum(len(batch) for batch in source.images(size=8, channels=1)) == 4
    with pytest.raises(DataError, match="row 3: holds 2 pages where one picture is needed"):
        decode(stack, name="row 3")
    reduced = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(reduced, True) as writer:
        pages[0].save(writer, "TIFF")
        writer.newFrame()
        pages[1].save(writer, "TIFF", tiffinfo={254: 1})
    assert count_pages(reduced.getvalue()) == 1
    assert count_pages(stack) == 2


@pytest.mark.parametrize("bits", ["I;16", "L"])
def test_a_tiff_whose_white_is_zero_is_turned(bits: str) -> None:
    grey = scan_pixels().astype(np.uint16) * 16 if bits == "I;16" else scan_pixels()
    inverted = (65535 if bits == "I;16" else 255) - grey
    data = bytes(imagecodecs.tiff_encode(inverted, photometric="miniswhite"))
    assert np.array_equal(decode(data, name="x"), decode(picture_bytes(grey, "PNG"), name="x"))


@pytest.mark.parametrize(
    "name", ["a-slope-half.dcm", "c-modality-lut-then-voi-lut.dcm", "enhanced-ct-per-frame.dcm", "empty-rescale.dcm"]
)
def test_tables_and_windows_are_those_of_pydicom_and_of_the_standard(name: str) -> None:
    data = pydicom.dcmread(CASES / name)
    for number, frame in enumerate(read_dicom(CASES / name)):
        stored = data.pixel_array if frame.shape == data.pixel_array.shape else data.pixel_array[number]
        group = data
        if "PerFrameFunctionalGroupsSequence" in data:
            items = (data.PerFrameFunctionalGroupsSequence[number], data.SharedFunctionalGroupsSequence[0])
            group = Dataset()
            for item in reversed(items):
                for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                    group.update(item[macro].value[0] if macro in item else {})
        if data.get("RescaleSlope") == "" or group.get("RescaleSlope") is None:
            signal = np.asarray(
                pydicom.pixels.apply_modality_lut(stored, data if "ModalityLUTSequence" in data else Dataset())
            )
        else:
            signal = stored * float(group.RescaleSlope) + float(group.RescaleIntercept)
        if "VOILUTSequence" in data:
            table = data.VOILUTSequence[0]
            places = np.clip(np.rint(signal) - table.LUTDescriptor[1], 0, table.LUTDescriptor[0] - 1).astype(int)
            data_of_table = table.LUTData
            entries = (
                np.frombuffer(data_of_table, "<u2") if isinstance(data_of_table, bytes) else np.array(data_of_table)
            )
            exact = entries.astype(float)[places] * 255 / (2 ** table.LUTDescriptor[2] - 1)
        else:
            center, width = float(group.WindowCenter), float(group.WindowWidth)
            exact = ((signal - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1) * 255
        assert np.abs(frame - exact).max() <= GREY_LEVELS


def test_a_groups_values_go_before_those_of_all_frames_and_these_before_the_files(tmp_path: Path) -> None:
    stored = np.stack([scan_pixels().astype(np.uint16)] * 3)

    def item(slope: float | None, window: tuple[float, float] | None) -> Dataset:
        group, value, interest = Dataset(), Dataset(), Dataset()
        if slope is not None:
            value.RescaleSlope, value.RescaleIntercept = slope, 0
            group.PixelValueTransformationSequence = [value]
        if window is not None:
            interest.WindowCenter, interest.WindowWidth = window
            group.FrameVOILUTSequence = [interest]
        return group

    frames = dicom(
        tmp_path,
        dicom_bytes(
            stored,
            RescaleSlope=1,
            RescaleIntercept=0,
            WindowCenter=50,
            WindowWidth=20,
            SharedFunctionalGroupsSequence=[item(2.0, (300, 101))],
            PerFrameFunctionalGroupsSequence=[item(None, None), item(4.0, None), item(4.0, (500, 301))],
        ),
    )
    for frame, slope, (center, width) in zip(
        frames, (2.0, 4.0, 4.0), ((300, 101), (300, 101), (500, 301)), strict=True
    ):
        exact = ((stored[0] * slope - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1) * 255
        assert np.abs(frame - exact).max() <= 1


def test_padding_does_not_set_the_black_point(tmp_path: Path) -> None:
    padded, plain = (read_dicom(CASES / f"{name}-no-window.dcm")[0] for name in ("padded", "unpadded"))
    is_padding = pydicom.dcmread(CASES / "padded-no-window.dcm").pixel_array == -2000
    assert apart(padded[~is_padding], plain[~is_padding]) <= GREY_LEVELS
    assert padded[is_padding].max() == 0
    grey = scan_pixels().astype(np.int16) * 4
    ranged = grey.copy()
    ranged[:5], ranged[5:9] = -3000, -2500
    tags = {"PixelRepresentation": 1, "PixelPaddingValue": -3000, "PixelPaddingRangeLimit": -2500}
    (shown,) = dicom(tmp_path, dicom_bytes(ranged.view(np.uint16), **tags))
    (left,) = dicom(tmp_path, dicom_bytes(grey[9:].view(np.uint16), PixelRepresentation=1))
    assert apart(shown[9:], left) <= 1
    assert shown[:9].max() == 0
    (white,) = dicom(tmp_path, dicom_bytes(ranged.view(np.uint16), PhotometricInterpretation="MONOCHROME1", **tags))
    assert white[:9].max() == 0, "padding is background, not signal"


@pytest.mark.parametrize(
    "tags",
    [{"WindowWidth": ""}, {"WindowCenter": None, "WindowWidth": None}, {"RescaleSlope": None}, {"WindowWidth": 0}],
)
def test_a_value_of_zero_length_is_as_if_it_were_not_there(tmp_path: Path, tags: dict[str, object]) -> None:
    grey = scan_pixels().astype(np.uint16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(dicom(tmp_path, dicom_bytes(grey, **tags))[0], dicom(tmp_path, dicom_bytes(grey))[0])


def test_a_decimal_comma_is_read_and_what_is_no_number_is_named(tmp_path: Path) -> None:
    grey = scan_pixels().astype(np.uint16)
    with_point = dicom_bytes(grey, WindowCenter="100.5", WindowWidth="80.5")
    with_comma = with_point.replace(b"100.5", b"100,5").replace(b"80.5", b"80,5")
    assert np.array_equal(dicom(tmp_path, with_comma)[0], dicom(tmp_path, with_point)[0])
    with pytest.raises(DataError, match=r"scan\.dcm: not a readable DICOM picture \(WindowCenter is no number\)"):
        dicom(tmp_path, with_point.replace(b"100.5", b"about"))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
def test_a_file_without_preamble_or_heading_is_read_in_any_byte_order(tmp_path: Path, syntax: str) -> None:
    grey = scan_pixels().astype(np.uint16) * 10
    whole = dicom_bytes(grey, syntax=syntax, WindowCenter=800, WindowWidth=900)
    meta = 144 + int.from_bytes(whole[140:144], "little")
    (expected,) = dicom(tmp_path, whole)
    for data in (whole[132:], whole[meta:]):
        assert np.array_equal(dicom(tmp_path, data)[0], expected)
        assert np.array_equal(served(data, size=32).scans, served(whole, size=32).scans)


def test_bits_above_those_that_are_stored_and_bits_below_them_do_not_count(tmp_path: Path) -> None:
    grey = scan_pixels().astype(np.uint16) * 16
    plain = dicom(tmp_path, dicom_bytes(grey, BitsStored=12, HighBit=11))[0]
    overlaid = grey | np.uint16(0x8000) * (np.arange(32) % 2).astype(np.uint16)
    assert np.array_equal(dicom(tmp_path, dicom_bytes(overlaid, BitsStored=12, HighBit=11))[0], plain)
    assert np.array_equal(dicom(tmp_path, dicom_bytes(grey << 4, BitsStored=12, HighBit=15))[0], plain)


def test_every_frame_of_luma_and_chroma_has_its_colours(tmp_path: Path) -> None:
    colours = np.stack([scan_pixels(), scan_pixels()[::-1], scan_pixels()[:, ::-1]], axis=2)
    frame = picture_bytes(colours, "JPEG", quality=95, subsampling=0)
    frames = dicom(
        tmp_path,
        dicom_bytes(
            np.stack([scan_pixels()] * 3),
            syntax=JPEGBaseline8Bit,
            frames=[frame + bytes(len(frame) % 2)] * 3,
            SamplesPerPixel=3,
            PhotometricInterpretation="YBR_FULL_422",
            PlanarConfiguration=0,
        ),
    )
    assert all(apart(one, colours) < 40 for one in frames)
    assert all(np.array_equal(one, frames[0]) for one in frames)


def circle(height: int, width: int, *, aspect: float) -> np.ndarray:
    """A disc whose pixels are ``aspect`` times as high as wide, so that it is one on a screen of such pixels."""
    rows, columns = np.mgrid[:height, :width]
    return np.where(((rows - height / 2) * aspect) ** 2 + (columns - width / 2) ** 2 < 14**2, 900, 100).astype(
        np.uint16
    )


def sides(shown: np.ndarray) -> tuple[int, int]:
    bright = shown > 128
    return int(bright.any(axis=1).sum()), int(bright.any(axis=0).sum())


@pytest.mark.parametrize(
    ("tags", "aspect"),
    [
        ({"PixelSpacing": [2, 1]}, 2.0),
        ({"PixelSpacing": [0.5, 1]}, 0.5),
        ({"ImagerPixelSpacing": [1, 2]}, 0.5),
        ({"PixelAspectRatio": [2, 1]}, 2.0),
    ],
)
def test_a_disc_stays_round_where_the_file_tells_the_form_of_its_pixels(
    tmp_path: Path, tags: dict[str, object], aspect: float
) -> None:
    stored = circle(64, 64, aspect=aspect)
    (shown,) = dicom(tmp_path, dicom_bytes(stored, **tags))
    assert shown.shape[0] == shown.shape[1]
    high, wide = sides(served(dicom_bytes(stored, **tags), size=128).scans[0, 0])
    assert abs(high - wide) <= 2
    high, wide = sides(served(dicom_bytes(stored), size=128).scans[0, 0])
    assert abs(high - wide) > 10, "without it, the disc is distorted"
    square = dicom(tmp_path, dicom_bytes(stored, PixelSpacing=[0.7, 0.7]))[0]
    assert np.array_equal(square, dicom(tmp_path, dicom_bytes(stored))[0]), "square pixels are left alone"


def test_a_disc_in_a_volume_stays_round_and_a_ratio_that_cannot_be_is_ignored() -> None:
    stored = circle(64, 64, aspect=2.0).T[..., None]
    image = nib.Nifti1Image(stored.astype(np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))
    high, wide = sides(served(image.to_bytes(), size=128).scans[0, 0])
    assert abs(high - wide) <= 2
    for ratio in (0.0, 100.0, float("nan"), 1.005):
        assert np.array_equal(square_pixels(scan_pixels(), aspect=ratio), scan_pixels())


def test_sparse_tissue_is_visible() -> None:
    study = served("sparse.nii.gz")
    assert study.slices is not None
    assert len(study.slices) == len(study.scans) >= 1, "blank slices are left out"
    assert study.scans.max() == 255
    (slices,) = [np.stack(read_slices(CASES / "sparse.nii.gz", at_most=8))]
    assert slices.max() == 255


def test_several_slices_of_a_volume_are_looked_at_and_are_those_of_training() -> None:
    study = served("lesion-in-8-of-9-slices.nii.gz", size=64)
    assert study.slices == tuple(range(9))
    trained = read_slices(CASES / "lesion-in-8-of-9-slices.nii.gz", at_most=9)
    assert np.array_equal(study.scans[:, 0], np.stack(trained))
    deep = np.random.default_rng(0).integers(0, 9, (16, 16, 400)).astype(np.int16).cumsum(axis=0, dtype=np.int16)
    numbers = served(gzip.compress(nifti_bytes(deep)), size=16).slices
    assert numbers is not None
    assert len(numbers) == 16
    assert (min(numbers), max(numbers)) == (106, 293), "evenly over the central half"
    assert len(set(np.diff(numbers))) <= 2
