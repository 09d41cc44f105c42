"""Which scan of a file answers for all of them."""

from __future__ import annotations

import numpy as np
import pytest

from fedplatform.core.settings import ExperimentError
from fedplatform.serving.suspicion import most_suspicious, without_finding

NONE = np.zeros(3, bool)  # of three scans looks like another kind


@pytest.mark.parametrize("classes", [("healthy", "lesion"), ("no", "yes"), ("No_Tumor", "glioma"), ("normal", "aca")])
def test_the_scan_that_is_least_like_one_without_a_finding_counts(classes: tuple[str, str]) -> None:
    assert without_finding(classes) == without_finding(classes[::-1]) == classes[0]
    chances = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    assert most_suspicious(chances, 0, foreign=NONE) == 1
    assert most_suspicious(chances[:, ::-1], 1, foreign=NONE) == 1


def test_whoever_publishes_may_say_which_class_is_without_a_finding() -> None:
    assert without_finding(("gesund", "krank"), named="gesund") == "gesund"
    with pytest.raises(ExperimentError, match="no class is called 'gesnd'; did you mean 'gesund'"):
        without_finding(("gesund", "krank"), named="gesnd")


def test_a_lesion_in_one_slice_of_nine_counts_and_so_do_those_in_eight() -> None:
    for lesions in (1, 8):
        chances = np.array([[0.1, 0.9]] * lesions + [[0.95, 0.05]] * (9 - lesions))
        assert most_suspicious(chances, 0, foreign=np.zeros(9, bool)) < lesions


def test_where_no_class_is_without_a_finding_the_scan_unlike_the_others_counts() -> None:
    chances = np.array([[0.1, 0.8, 0.1], [0.1, 0.85, 0.05], [0.5, 0.3, 0.2]])
    assert without_finding(("ductal", "lobular", "mucinous")) is None
    assert most_suspicious(chances, None, foreign=NONE) == 2


def test_slices_of_another_kind_count_only_where_most_of_the_file_is_of_another_kind() -> None:
    chances = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    assert most_suspicious(chances, 0, foreign=np.array([False, True, False])) == 2
    assert most_suspicious(chances, 0, foreign=np.array([True, False, True])) == 2
    assert most_suspicious(chances, 0, foreign=np.array([True, True, True])) == 1
