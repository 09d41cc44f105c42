from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedplatform.defence import Certificate, Diagnosis
from fedplatform.serving.answer import Answer, CertificateAnswer, answer_of, certificate_answer_of, heat_map, picture

CLASSES = ("healthy", "tumour")
DIAGNOSIS = Diagnosis(
    label=1,
    referral=None,
    confidence=0.75,
    probabilities=(0.25, 0.75),
    anomaly_score=3.0,
    threshold=1.5,
    flagged=True,
    depth=150,
    votes=(1, 1, 0),
)
HEADING = {"scan": 0, "request_id": "r", "hospital_id": "h", "model_version": "1", "milliseconds": {"examine": 1.5}}


def answer(diagnosis: Diagnosis = DIAGNOSIS, **pictures: bytes) -> Answer:
    return answer_of(diagnosis, classes=CLASSES, parts={"tampering": 2.0}, slice_number=None, **HEADING, **pictures)


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_diagnosis_is_answered_in_the_words_of_its_classes() -> None:
    said = answer()
    assert (said.class_name, said.votes) == ("tumour", ["tumour", "tumour", "healthy"])
    assert said.probabilities == {"healthy": 0.25, "tumour": 0.75}
    assert said.purified
    assert not answer(replace(DIAGNOSIS, depth=0, votes=())).purified
    assert Answer.model_validate_json(said.model_dump_json()) == said


def test_what_is_not_a_number_is_null_and_the_answer_still_json() -> None:
    said = answer(replace(DIAGNOSIS, anomaly_score=float("nan"), threshold=float("inf")))
    assert (said.anomaly_score, said.threshold) == (None, None)
    assert json.loads(said.model_dump_json())["threshold"] is None


def test_pictures_are_asked_for_and_come_as_png() -> None:
    shown = picture(np.linspace(0, 1, 16).reshape(1, 4, 4))
    said = answer(purified_scan=shown)
    assert said.anomaly_map is None
    assert said.purified_scan is not None
    assert base64.b64decode(said.purified_scan) == shown
    assert decoded(shown)[0, 0] == 0
    assert decoded(shown)[3, 3] == 255
    assert decoded(picture(np.full((3, 4, 4), 0.5))).shape == (4, 4, 3)


def test_a_certificate_without_a_class_has_no_name() -> None:
    certificate = Certificate(None, 0.0, 0.4, (3, 2), samples=5, sigma=0.25, confidence=0.999)
    said = certificate_answer_of(certificate, classes=CLASSES, **HEADING)
    assert isinstance(said, CertificateAnswer)
    assert (said.label, said.class_name, said.radius) == (None, None, 0.0)
    sure = certificate_answer_of(replace(certificate, label=1, radius=0.3), classes=CLASSES, **HEADING)
    assert sure.class_name == "tumour"


def test_the_map_is_brightest_where_the_scan_is_least_as_expected() -> None:
    errors = np.full(64, -1.0)
    errors[8 * 5 + 2] = 40.0
    brightness = decoded(heat_map(errors, location=-1.0, scale=0.5, size=64)).astype(int).sum(axis=2)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert (row // 8, column // 8) == (5, 2)
    assert brightness[:16].max() < 10, "as expected is dark"


def test_a_map_of_expected_errors_is_dark_however_they_differ_and_the_same_error_has_the_same_colour() -> None:
    usual = np.linspace(-1.5, -0.5, 64)
    calm = decoded(heat_map(usual, location=-1.0, scale=0.5, size=32)).astype(int).sum(axis=2)
    assert calm.max() < 150
    shifted = decoded(heat_map(usual + 100, location=99.0, scale=0.5, size=32))
    assert np.array_equal(shifted, decoded(heat_map(usual, location=-1.0, scale=0.5, size=32)))


@given(st.lists(st.floats(width=32), min_size=16, max_size=16))
def test_whatever_the_errors_are_there_is_a_map(errors: list[float]) -> None:
    assert decoded(heat_map(np.array(errors, np.float32), location=0.0, scale=1.0, size=20)).shape == (20, 20, 3)


def test_patches_that_make_no_square_are_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        heat_map(np.zeros(7), location=0.0, scale=1.0, size=8)
