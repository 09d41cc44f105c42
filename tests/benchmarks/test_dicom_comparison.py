"""Our reading of DICOM files beside DCMTK's."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.dicom import MOST, available, compare, dicom_files, shipped_files

CASES = Path(__file__).parents[1] / "cases"
WITHOUT_DCMTK = {"j2k-with-jp2-boxes.dcm", "htj2k.dcm"}  # it has no JPEG 2000

pytestmark = pytest.mark.skipif(not available(), reason="DCMTK is not here: apt-get install dcmtk")


@pytest.mark.parametrize("path", sorted(CASES.glob("*.dcm")), ids=lambda path: path.name)
def test_a_case_is_read_as_dcmtk_reads_it(path: Path) -> None:
    found = compare(path)
    assert found is not None
    if path.name in WITHOUT_DCMTK:
        assert found.ours or found.theirs
    else:
        assert found.worst is not None, found.ours or found.theirs
        assert found.worst <= MOST


@pytest.mark.slow
def test_all_files_that_pydicom_ships_are_read_as_dcmtk_reads_them_or_there_is_a_reason() -> None:
    found = [one for one in map(compare, shipped_files()) if one is not None]
    assert len(found) > 150
    without_reason = [one for one in found if (one.ours or one.theirs or not one.agrees) and not one.reason]
    assert [(one.path.name, one.worst, one.ours, one.theirs) for one in without_reason] == []
    assert sum(one.worst is not None for one in found) > 130


def test_what_does_not_begin_like_dicom_is_not_compared(tmp_path: Path) -> None:
    (tmp_path / "notes").write_bytes(b"buy milk")
    assert list(dicom_files(tmp_path)) == []
