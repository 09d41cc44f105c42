"""Our reading of DICOM files beside DCMTK's: python -m benchmarks.dicom [FOLDER ...].

Over the folders, or over all files that pydicom and pydicom-data ship. DCMTK (Debian: apt-get install dcmtk) draws the
first and the last frame of each; where a file has neither window nor table, with the range that we choose.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset

from fedplatform.data.codecs import JPEG_LS
from fedplatform.data.dicom import automatic_range, displayed_frames, frame_count
from fedplatform.data.dicom_display import Display, Window, places
from fedplatform.data.dicom_file import DicomFile, NoPixels, begins_like_dicom

MOST = 3  # grey levels
TOOLS = ("dcmj2pnm", "dcml2pnm")  # the second reads JPEG-LS
# Why a file may differ by more than that, or why one of the two does not read it, by its name.
REASONS = {
    "rtdose_expb.dcm": "32 bits, big endian: DCMTK swaps bytes in words of 16 bits; ours equals rtdose.dcm",
    "rtdose_expb_1frame.dcm": "32 bits, big endian: DCMTK swaps bytes in words of 16 bits; ours equals rtdose.dcm",
    "badVR.dcm": "NumberOfFrames is 1A",
    "MR_truncated.dcm": "made for pydicom's tests: its pixels are cut short",
    "JPEG2000-embedded-sequence-delimiter.dcm": "made for pydicom's tests: 250 bytes that are no codestream",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "made for pydicom's tests: its pixels are cut short",
    "meta_missing_tsyntax.dcm": "made for pydicom's tests: it holds no picture",
    "nested_priv_SQ.dcm": "made for pydicom's tests: it holds no picture",
    "SC_rgb_jpeg.dcm": "the data set is implicit where its heading says explicit",
    "explicit_VR-UN.dcm": "JPEG 2000",
    "gdcm-US-ALOKA-16.dcm": "a palette of 16 bits that DCMTK does not take",
    "gdcm-US-ALOKA-16_big.dcm": "a palette of 16 bits that DCMTK does not take",
}


KINDS = (  # the same, by a part of the name
    ("J2K", "DCMTK has no JPEG 2000"),
    ("jp2k", "DCMTK has no JPEG 2000"),
    ("jpeg2k", "DCMTK has no JPEG 2000"),
    ("jpeg_2k", "DCMTK has no JPEG 2000"),
    ("JPEG2000", "DCMTK has no JPEG 2000"),
    ("gdcm_KY", "DCMTK has no JPEG 2000"),
    ("rgb_32bit", "DCMTK has no colours of 32 bits"),
    ("rgb_expb_32bit", "DCMTK has no colours of 32 bits"),
)


@dataclass(frozen=True)
class Comparison:
    """One file: the worst difference in grey levels, or why there is none, in words of ours and of DCMTK's."""

    path: Path
    worst: int | None
    ours: str
    theirs: str

    @property
    def reason(self) -> str:
        """Why it differs or is not drawn, as far as it is known."""
        known = REASONS.get(self.path.name, "")
        return known or next((reason for part, reason in KINDS if part in self.path.name), "")

    @property
    def agrees(self) -> bool:
        """Whether the difference is small, or DCMTK has nothing to compare with."""
        return self.worst is None or self.worst <= MOST


def available() -> bool:
    """Whether DCMTK is here."""
    return all(shutil.which(tool) for tool in TOOLS)


def shipped_files() -> Iterator[Path]:
    """All DICOM files that pydicom and pydicom-data bring."""
    import data_store

    for folder in (Path(pydicom.__file__).parent / "data", Path(data_store.__file__).parent):
        yield from dicom_files(folder)


def dicom_files(folder: Path) -> Iterator[Path]:
    """The files below a folder that begin like DICOM."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                if begins_like_dicom(file.read(140)):
                    yield path


def compare(path: Path) -> Comparison | None:
    """Compare the first and the last frame; None where the file holds no picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = DicomFile.of(path.read_bytes()).inflated().parsed()
        except NoPixels:
            return None
        except Exception as error:
            return Comparison(path, None, f"{type(error).__name__}: {error}", "")
        try:
            count = frame_count(data)
            wanted = sorted({0, count - 1})
            frames = {n: frame for n, frame in enumerate(displayed_frames(data)) if n in wanted}
            windows = {n: window_for_dcmtk(data, n) for n in wanted}
        except Exception as error:
            return Comparison(path, None, (str(error).splitlines() or [type(error).__name__])[0], "")
    worst = 0
    for number, frame in frames.items():
        theirs = drawn_by_dcmtk(path, data, number, windows[number])
        if isinstance(theirs, str):
            return Comparison(path, None, "", theirs)
        if theirs.shape != frame.shape:
            return Comparison(path, None, "", f"draws {theirs.shape} where we draw {frame.shape}")
        worst = max(worst, int(np.abs(theirs.astype(int) - frame).max()))
    return Comparison(path, worst, "", "")


def window_for_dcmtk(data: Dataset, number: int) -> list[str]:
    """DCMTK's options for the window of a frame.

    Of functional groups DCMTK 3.6.7 takes the rescale that all frames share, and nothing else: the rest is spelled out.
    """
    if data.get("SamplesPerPixel") == 3 or data.PhotometricInterpretation == "PALETTE COLOR":
        return []
    displays = [Display.of(data, n) for n in range(frame_count(data))]
    display = displays[number]
    of_file = list(places(data, number, "FrameVOILUTSequence")) == [data]
    own = (*(data.get("PerFrameFunctionalGroupsSequence") or ())[number : number + 1], Dataset())[0]
    is_own_rescale = "PixelValueTransformationSequence" in own
    if of_file and display.interest is not None and not is_own_rescale:
        return ["+Wi", "1"] if isinstance(display.interest, Window) else ["+Wl", "1"]
    if isinstance(display.interest, Window):
        center, width = display.interest.center, display.interest.width
    else:
        low, high = automatic_range(data, displays)
        center, width = (low + high + 1) / 2, high - low + 1
    if is_own_rescale:
        center, width = (center - display.intercept) / display.slope, width / display.slope
    return ["+Ww", str(center), str(max(width, 1.0))]


def drawn_by_dcmtk(path: Path, data: Dataset, number: int, window: Sequence[str]) -> np.ndarray | str:
    """A frame as DCMTK draws it, (h, w) or (h, w, 3) uint8, or why it does not."""
    tool = TOOLS[1] if data.file_meta.TransferSyntaxUID in JPEG_LS else TOOLS[0]
    with tempfile.NamedTemporaryFile(suffix=".pnm") as out:
        words = [tool, "+F", str(number + 1), "-O", *window, str(path), out.name]  # without overlays
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        drawn = Path(out.name).read_bytes()
    if done.returncode or not drawn:
        said = [line for line in done.stderr.splitlines() if line.startswith(("F:", "E:"))]
        return said[-1] if said else f"status {done.returncode}"
    with Image.open(io.BytesIO(drawn)) as image:
        return np.asarray(image)


def main(folders: Sequence[str] = ()) -> None:
    if not available():
        sys.exit("DCMTK is not here: apt-get install dcmtk")
    paths = [path for folder in folders for path in dicom_files(Path(folder))] if folders else list(shipped_files())
    found = [one for one in map(compare, paths) if one is not None]
    read = [one for one in found if not one.ours]
    compared = [one for one in read if one.worst is not None]
    print(f"{len(paths)} DICOM files, {len(found)} of them with a picture; read: {len(read)}")
    without_reason = [one.worst or 0 for one in compared if not one.reason]
    print(f"compared with DCMTK: {len(compared)}; worst difference without a reason: {max(without_reason, default=0)}")
    print(f"equal: {sum(one.worst == 0 for one in compared)}; within {MOST}: {sum(one.agrees for one in compared)}")
    for title, ones in (
        ("refused", [one for one in found if one.ours]),
        ("not drawn by DCMTK", [one for one in read if one.worst is None]),
        (f"more than {MOST} grey levels", [one for one in compared if not one.agrees]),
    ):
        print(f"{title}: {len(ones)}")
        for one in ones:
            said = one.ours or one.theirs or one.worst
            print(f"  {one.path.name}: {said}" + (f" ({one.reason})" if one.reason else ""))


if __name__ == "__main__":
    main(sys.argv[1:])
