"""Grey values of a DICOM file to what a screen shows, against the formulas of PS3.3 written out."""

from __future__ import annotations

import io
import math
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hostile_uploads import dicom_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from fedplatform.data.dicom import DicomHeader, read_dicom, read_dicom_header, shown_frames
from fedplatform.data.error import DataError
from fedplatform.data.origin import UNKNOWN


def shown(stored: np.ndarray, **tags: object) -> list[np.ndarray]:
    """The frames that are read from a real file of such pixels (h, w) or (frames, h, w) uint16."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.dcm"
        path.write_bytes(dicom_bytes(stored, **tags))
        return read_dicom(path)


def colours(pixels: np.ndarray, **tags: object) -> list[np.ndarray]:
    """The same of colours (h, w, 3) or (frames, h, w, 3)."""
    told = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, **tags}
    return shown(pixels[..., 0], PixelData=pixels.tobytes() + b"\x00" * (pixels.nbytes % 2), **told)


def linear(value: float, centre: float, width: float) -> float:
    """PS3.3, C.11.2.1.2.1, from 0 to 1."""
    if value <= centre - 0.5 - (width - 1) / 2:
        return 0.0
    if value > centre - 0.5 + (width - 1) / 2:
        return 1.0
    return (value - (centre - 0.5)) / (width - 1) + 0.5


def linear_exact(value: float, centre: float, width: float) -> float:
    """PS3.3, C.11.2.1.3.2, from 0 to 1."""
    if value <= centre - width / 2:
        return 0.0
    if value > centre + width / 2:
        return 1.0
    return (value - centre) / width + 0.5


def sigmoid(value: float, centre: float, width: float) -> float:
    """PS3.3, C.11.2.1.3.1, from 0 to 1."""
    exponent = -4 * (value - centre) / width
    return 1 / (1 + math.exp(exponent)) if exponent < 700 else 0.0


FUNCTIONS = {"LINEAR": linear, "LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}


@pytest.mark.parametrize("function", FUNCTIONS)
@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 4095), min_size=2, max_size=12),
    st.integers(-200, 4300),
    st.integers(2, 4000),
    st.sampled_from([(1.0, 0.0), (2.0, -1024.0), (0.5, 10.0)]),
)
def test_a_window_function_is_that_of_the_standard(
    function: str, stored: list[int], centre: int, width: int, rescale: tuple[float, float]
) -> None:
    slope, intercept = rescale
    (frame,) = shown(
        np.array([stored], np.uint16),
        WindowCenter=centre,
        WindowWidth=width,
        VOILUTFunction=function,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
    )
    exact = [255 * FUNCTIONS[function](slope * value + intercept, centre, width) for value in stored]
    assert frame.shape == (1, len(stored))
    assert np.abs(frame[0] - np.array(exact)).max() <= 0.5 + 1e-6, "to the nearest whole number"


def test_a_sigmoid_is_half_at_its_centre_and_rises_with_the_signal() -> None:
    values = np.array([[0, 50, 75, 100, 125, 150, 4000]], np.uint16)
    (frame,) = shown(values, WindowCenter=100, WindowWidth=100, VOILUTFunction="SIGMOID")
    # 255 / (1 + e^4), / (1 + e^2), / (1 + e^1), half, and the same from the other end.
    assert frame.tolist() == [[5, 30, 69, 128, 186, 225, 255]]


@pytest.mark.parametrize("told", [{}, {"VOILUTFunction": ""}, {"VOILUTFunction": "LINEAR"}])
def test_a_window_without_a_function_is_linear(told: dict[str, str]) -> None:
    (frame,) = shown(np.array([[0, 10, 11, 20, 21]], np.uint16), WindowCenter=11, WindowWidth=21, **told)
    assert frame.tolist() == [[0, 121, 134, 249, 255]]  # from 0.5 to 20.5


def test_a_window_of_width_one_is_a_threshold() -> None:
    (frame,) = shown(np.array([[98, 99, 100, 101]], np.uint16), WindowCenter=100, WindowWidth=1)
    assert frame.tolist() == [[0, 0, 255, 255]]  # above 99.5


def test_of_several_windows_the_first_is_shown() -> None:
    values = np.array([[0, 100, 200]], np.uint16)
    several = shown(values, WindowCenter=[100, 1000], WindowWidth=[101, 4000], VOILUTFunction="LINEAR_EXACT")
    one = shown(values, WindowCenter=100, WindowWidth=101, VOILUTFunction="LINEAR_EXACT")
    assert np.array_equal(several, one)


@pytest.mark.parametrize("half", [{"WindowCenter": 500}, {"WindowWidth": 100}])
def test_half_a_window_is_none_and_the_own_range_is_shown(half: dict[str, int]) -> None:
    (frame,) = shown(np.array([[100, 200, 400]], np.uint16), **half)
    assert frame.tolist() == [[0, 85, 255]]


def table(entries: list[int], *, first: int = 0, bits: int = 8) -> Dataset:
    """An item of a sequence of tables, PS3.3, C.11.1.1 and C.11.2.1.1."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return item


def test_a_table_of_values_of_interest_takes_the_place_of_a_window() -> None:
    values = np.array([[9, 10, 11, 12, 13, 14]], np.uint16)
    (frame,) = shown(values, VOILUTSequence=[table([0, 200, 50, 255], first=10)])
    assert frame.tolist() == [[0, 0, 200, 50, 255, 255]], "what lies outside the table is shown as its ends"
    (inverted,) = shown(
        values, VOILUTSequence=[table([0, 200, 50, 255], first=10)], PhotometricInterpretation="MONOCHROME1"
    )
    assert inverted.tolist() == [[255, 255, 55, 205, 0, 0]]


def test_where_there_are_a_window_and_a_table_the_window_is_shown() -> None:
    values = np.array([[0, 1, 2, 3]], np.uint16)
    window = {"WindowCenter": 2, "WindowWidth": 4, "VOILUTFunction": "LINEAR_EXACT"}
    both = shown(values, VOILUTSequence=[table([255, 0, 0, 0])], **window)
    assert np.array_equal(both, shown(values, **window))


def test_a_modality_table_comes_before_the_window() -> None:
    modality = table([1000, 0, 500, 250], bits=16)
    modality.ModalityLUTType = "US"
    (frame,) = shown(
        np.array([[0, 1, 2, 3]], np.uint16),
        ModalityLUTSequence=[modality],
        WindowCenter=500,
        WindowWidth=1000,
        VOILUTFunction="LINEAR_EXACT",
    )
    assert frame.tolist() == [[255, 0, 128, 64]]


def test_monochrome1_is_the_same_picture_with_white_for_black() -> None:
    values = np.array([[0, 20, 100]], np.uint16)
    (frame,) = shown(values, PhotometricInterpretation="MONOCHROME1")
    assert frame.tolist() == [[255, 204, 0]]
    assert frame.dtype == np.uint8


def test_three_samples_a_pixel_are_colours_as_they_are_and_deeper_ones_are_scaled_to_the_brightest() -> None:
    eight = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)
    (frame,) = colours(eight)
    assert np.array_equal(frame, eight)
    sixteen = np.array([[[0, 1000, 2000], [500, 250, 4000]]], np.uint16)
    (frame,) = colours(sixteen)
    assert frame.dtype == np.uint8
    assert frame.tolist() == [[[0, 64, 128], [32, 16, 255]]]  # of 4,000; black stays black whatever is darkest
    (brighter,) = colours(sixteen + 1000)
    assert brighter.tolist() == [[[51, 102, 153], [76, 64, 255]]]


def test_one_sample_a_pixel_is_grey_whether_or_not_the_file_says_so() -> None:
    values = np.array([[0, 4, 10]], np.uint16)
    (said,) = shown(values, SamplesPerPixel=1)
    assert said.tolist() == [[0, 102, 255]]


def test_a_palette_of_colours_is_looked_up() -> None:
    tags: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, entries in (("Red", (0, 255, 10)), ("Green", (100, 0, 20)), ("Blue", (0, 50, 255))):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = np.array(entries, np.uint16).tobytes()
    (frame,) = shown(np.array([[0, 1, 2]], np.uint16), **tags)
    assert frame.tolist() == [[[0, 100, 0], [255, 0, 50], [10, 20, 255]]]


@pytest.mark.parametrize("kind", ["RGB", "HSV"])
def test_one_sample_a_pixel_that_is_said_to_be_a_colour_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match=f"photometric interpretation {kind} with one sample a pixel"):
        shown(np.array([[0, 5]], np.uint16), PhotometricInterpretation=kind)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_frames_come_apart_in_their_order_and_share_one_range(count: int) -> None:
    stored = np.arange(count * 6, dtype=np.uint16).reshape(count, 2, 3)
    frames = shown(stored)
    assert len(frames) == count
    assert np.array_equal(np.stack(frames), np.rint(stored * (255 / (count * 6 - 1))))
    with_colours = colours(np.repeat(stored.astype(np.uint8)[..., None], 3, axis=3))
    assert [frame.shape for frame in with_colours] == [(2, 3, 3)] * count


def test_a_header_names_the_patient_the_place_and_the_frames(tmp_path: Path) -> None:
    path = tmp_path / "scan.dcm"
    two = np.zeros((2, 2, 2), np.uint16)
    for tags, header in (
        ({"InstitutionName": "ward 7", "ManufacturerModelName": "Avanto"}, DicomHeader("p1", "ward 7", 2, UNKNOWN)),
        ({"InstitutionName": "", "ManufacturerModelName": "Avanto"}, DicomHeader("p1", "Avanto", 2, UNKNOWN)),
        ({"PatientID": ""}, DicomHeader("", "", 2, UNKNOWN)),
    ):
        path.write_bytes(dicom_bytes(two, **tags))
        assert read_dicom_header(path) == header
    path.write_bytes(dicom_bytes(two[0], PatientID="p2"))
    assert read_dicom_header(path) == DicomHeader("p2", "", 1, UNKNOWN)


def test_the_error_names_what_was_read_and_is_one_line() -> None:
    data = pydicom.dcmread(io.BytesIO(dicom_bytes(np.zeros((2, 2), np.uint16))))
    del data.PixelData
    with pytest.raises(DataError, match=r"^the upload: not a readable DICOM picture \(.+\)$"):
        list(shown_frames(data, name="the upload"))


def test_a_table_of_values_of_interest_is_looked_up_with_the_rescaled_value() -> None:
    # PS3.3, C.11.2: the output of the modality transformation is the input of the values of interest.
    values = np.array([[10, 11, 12, 13]], np.uint16)
    (frame,) = shown(values, RescaleSlope=1, RescaleIntercept=-10, VOILUTSequence=[table([0, 200, 50, 255])])
    assert frame.tolist() == [[0, 200, 50, 255]]


def test_a_table_of_values_of_interest_says_how_bright_white_is() -> None:
    # PS3.3, C.11.2.1.1: its entries are from 0 to 2^bits - 1, the whole range of the display.
    (frame,) = shown(np.array([[1, 2]], np.uint16), VOILUTSequence=[table([0, 50, 100, 255])])
    assert frame.tolist() == [[50, 100]]
