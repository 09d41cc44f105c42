from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from doc_pages import block_with
from endpoint_process import HOSPITALS, Endpoint, resident_bytes, traffic
from hostile_uploads import dicom_bytes, hostile_uploads, nifti_bytes, picture_bytes, scan_pixels, volume_voxels

from fedplatform.data.images import to_images
from fedplatform.defence import DefendedClassifier, KeyedNoise
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.serving.audit import AuditEntry, Verified, read_entry, verify
from fedplatform.serving.intake import Limits, read_scans
from fedplatform.serving.replay import replay
from fedplatform.serving.secret import read_secret, secret_path
from fedplatform.serving.versions import RunVersions, bundle_of

MEBIBYTE = 2**20
FORMATS = {
    "png": picture_bytes(scan_pixels(), "PNG"),
    "jpeg": picture_bytes(scan_pixels(), "JPEG"),
    "dicom": dicom_bytes(scan_pixels()),
    "nifti": nifti_bytes(volume_voxels()),
}
NOISE = picture_bytes(np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8), "PNG")  # hospital-01 flags it


def library(endpoint: Endpoint, hospital_id: str) -> DefendedClassifier:
    """The full defence as the library has it, under the noise that the server uses."""
    run = DefendedRun(endpoint.run)
    noise = KeyedNoise(read_secret(secret_path(endpoint.run, hospital_id)))
    return replace(run.hospital(hospital_id).defended("full"), noise=noise, kind=run.kind_gates()[hospital_id])


def assert_the_same(answer: dict, defended: DefendedClassifier, scan: np.ndarray) -> None:
    (expected,) = defended.diagnose(to_images(scan[None]))
    assert list(answer["probabilities"].values()) == pytest.approx(expected.probabilities, abs=1e-4)
    assert answer["anomaly_score"] == pytest.approx(expected.anomaly_score, abs=1e-4, rel=1e-5)
    assert answer["threshold"] == expected.threshold
    assert (answer["label"], answer["referral"], answer["flagged"]) == (
        expected.label,
        expected.referral,
        expected.flagged,
    )
    assert answer["kind_score"] == pytest.approx(expected.kind_score, rel=1e-4, abs=1e-4)
    assert answer["depth"] == expected.depth
    assert [int(vote) for vote in answer["votes"]] == list(expected.votes)


@pytest.mark.parametrize("hospital_id", HOSPITALS)
def test_answers_over_http_are_the_librarys_for_every_format_and_hospital(endpoint: Endpoint, hospital_id: str) -> None:
    defended = library(endpoint, hospital_id)
    depths = set()
    for name, data in (*FORMATS.items(), ("noise", NOISE)):
        slices = {"slice": 4} if name == "nifti" else {}
        response = endpoint.diagnose(data, hospital_id=hospital_id, **slices)
        assert response.status_code == 200, response.text
        (answer,) = response.json()["answers"]
        (scan,) = read_scans(data, size=16, channels=1, limits=Limits(), slice_number=slices.get("slice"))
        assert_the_same(answer, defended, scan)
        assert answer["request_id"] == response.headers["x-request-id"]
        depths.add(answer["depth"])
    assert len(depths) > 1 or hospital_id == "hospital-00"  # where nothing is flagged in this tiny run


def test_the_scans_of_many_files_are_answered_in_their_order(endpoint: Endpoint) -> None:
    files = [FORMATS["png"], NOISE, dicom_bytes(np.stack([scan_pixels()] * 3)), FORMATS["jpeg"]] * 6
    together = endpoint.diagnose(*files)
    assert together.status_code == 200, together.text
    assert together.json()["scans_by_file"] == [1, 1, 3, 1] * 6
    alone = [answer for data in files[:4] for answer in endpoint.diagnose(data).json()["answers"]]
    for one, many in zip(alone * 6, together.json()["answers"], strict=True):
        for name in ("label", "flagged", "depth", "votes", "scan"):
            assert one[name] == many[name]
        assert one["confidence"] == pytest.approx(many["confidence"], abs=1e-4)


def test_pictures_come_on_demand(endpoint: Endpoint) -> None:
    plain, shown = (endpoint.diagnose(NOISE, pictures=wanted).json() for wanted in (False, True))
    assert (plain["seen"], plain["answers"][0]["anomaly_map"]) == (None, None)
    for text in (shown["seen"][0], shown["answers"][0]["anomaly_map"], shown["answers"][0]["purified_scan"]):
        assert text.startswith("iVBORw0KGgo")  # how every PNG begins
    assert shown["seen"][0] != shown["answers"][0]["purified_scan"]


def test_a_slice_of_a_volume_can_be_chosen(endpoint: Endpoint) -> None:
    volume = FORMATS["nifti"]
    digests = {endpoint.diagnose(volume, slice=n, pictures=True).json()["seen"][0] for n in (1, 4, 7)}
    assert len(digests) == 3
    assert endpoint.diagnose(volume, slice=99).status_code == 422


def test_all_slices_of_a_volume_are_answered_and_the_most_suspicious_counts(endpoint: Endpoint) -> None:
    said = endpoint.diagnose(FORMATS["nifti"], FORMATS["png"]).json()
    assert said["scans_by_file"] == [9, 1]
    assert [answer["slice"] for answer in said["answers"]] == [*range(9), None]
    volume, alone = said["studies"]
    assert (volume["scans"], alone["scans"], alone["answer"], alone["slice"]) == (9, 1, 9, None)
    counts = said["answers"][volume["answer"]]
    assert (volume["slice"], volume["class_name"], volume["confidence"]) == (
        counts["slice"],
        counts["class_name"],
        counts["confidence"],
    )
    by_itself = endpoint.diagnose(FORMATS["nifti"], slice=volume["slice"]).json()["answers"][0]
    assert by_itself["confidence"] == pytest.approx(counts["confidence"], abs=1e-4)
    log = endpoint.run / "serving" / "audit.jsonl"
    entry = read_entry(log, len(log.read_text().splitlines()))
    assert isinstance(entry, AuditEntry)
    assert entry.slice_number == volume["slice"]


def test_a_certificate_is_proved_over_http(endpoint: Endpoint) -> None:
    url, headers = f"{endpoint.url}/v1/certify", endpoint.headers()
    response = requests.post(url, params={"samples": 64}, headers=headers, files={"scan": NOISE}, timeout=60)
    assert response.status_code == 200, response.text
    certificate = response.json()["certificate"]
    assert certificate["sigma"] == 0.25
    assert certificate["radius"] > 0 or certificate["label"] is None
    response = requests.post(url, params={"sigma": 1}, headers=headers, files={"scan": NOISE}, timeout=60)
    assert (response.status_code, response.json()["error"]) == (
        422,
        "The purifier has not learned noise of this sigma.",
    )


def test_a_key_opens_its_own_hospitals_model_and_nothing_else(endpoint: Endpoint) -> None:
    files = {"scan": NOISE}
    url = f"{endpoint.url}/v1/diagnose"
    assert requests.post(url, files=files, timeout=60).status_code == 401
    wrong = requests.post(url, files=files, headers={"X-API-Key": "x" * 43}, timeout=60)
    assert (wrong.status_code, wrong.json()["error"]) == (
        401,
        "This API key opens nothing: it is unknown, revoked or expired.",
    )
    other = endpoint.diagnose(NOISE, hospital_id="hospital-00", hospital="hospital-01")
    assert (other.status_code, other.json()["error"]) == (403, "This key opens another hospital's model.")
    bearer = {"Authorization": f"Bearer {endpoint.keys['hospital-00']}"}
    (answer,) = requests.post(url, files=files, headers=bearer, timeout=60).json()["answers"]
    assert answer["hospital_id"] == "hospital-00"
    (model,) = requests.get(f"{endpoint.url}/v1/models", headers=bearer, timeout=60).json()["models"]
    assert model["hospital_id"] == "hospital-00"
    seen = requests.get(f"{endpoint.url}/v1/requests", headers=bearer, timeout=60).json()["requests"]
    assert {one["hospital_id"] for one in seen} == {"hospital-00"}
    for page in ("/v1/models", "/v1/requests", "/v1/examples", "/v1/examples/scan-1.png"):
        assert requests.get(endpoint.url + page, timeout=60).status_code == 401


def test_every_answer_stands_in_the_audit_log_and_no_scan_does(endpoint: Endpoint) -> None:
    log = endpoint.run / "serving" / "audit.jsonl"
    before = len(log.read_text().splitlines())
    answer = endpoint.diagnose(NOISE, NOISE).json()
    lines = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    assert isinstance(verify(log), Verified)
    text = json.dumps(lines)
    assert text.count(answer["request_id"]) == 2
    assert "iVBORw0KGgo" not in text
    assert endpoint.keys["hospital-01"] not in text
    secret = read_secret(secret_path(endpoint.run, "hospital-01"))
    assert secret.hex() not in log.read_text()
    assert secret_path(endpoint.run, "hospital-01").stat().st_mode & 0o777 == 0o600


def test_an_auditor_repeats_an_answer_from_the_log(endpoint: Endpoint) -> None:
    endpoint.diagnose(NOISE)
    log = endpoint.run / "serving" / "audit.jsonl"
    entry = read_entry(log, len(log.read_text().splitlines()))
    assert isinstance(entry, AuditEntry)
    bundle = bundle_of(RunVersions(endpoint.run).folder(entry.model_version), "hospital-01")
    secret = read_secret(secret_path(endpoint.run, "hospital-01"))
    assert entry.flagged
    assert not replay(entry, NOISE, bundle=bundle, secret=secret, limits=Limits())


@pytest.mark.parametrize(
    ("path", "status"), [("/healthz", 200), ("/readyz", 200), ("/v1/nothing", 404), ("/v1/diagnose", 405)]
)
def test_every_page_answers_in_json(endpoint: Endpoint, path: str, status: int) -> None:
    response = requests.get(endpoint.url + path, timeout=60)
    assert response.status_code == status
    assert ("error" in response.json()) is (status >= 400)


def test_examples_are_offered_as_they_are_and_attacked(endpoint: Endpoint) -> None:
    url, headers = f"{endpoint.url}/v1/examples", endpoint.headers()
    examples = requests.get(url, headers=headers, timeout=60).json()["examples"]
    assert [one["attacked"] for one in examples] == [False, True] * 4
    scans = [requests.get(f"{url}/{one['name']}", headers=headers, timeout=60).content for one in examples]
    clean, attacked = (read_scans(data, size=16, channels=1, limits=Limits())[0].astype(int) for data in scans[:2])
    assert 0 < np.abs(clean - attacked).max() <= 8
    assert requests.get(f"{url}/examples.json", headers=headers, timeout=60).status_code == 404


@pytest.mark.slow
def test_hostile_uploads_get_a_4xx_and_one_sentence_and_the_next_good_one_is_answered(endpoint: Endpoint) -> None:
    replicas = endpoint.processes("ray::ServeReplica:fedplatform") + endpoint.processes("ray::ProxyActor")
    assert len(replicas) == 5
    before = sum(map(resident_bytes, replicas))
    uploads = list(hostile_uploads())
    assert len(uploads) >= 200
    with ThreadPoolExecutor(4) as pool:
        for upload, response in zip(uploads, pool.map(lambda one: endpoint.diagnose(one.data), uploads), strict=True):
            assert 400 <= response.status_code < 500, (upload.name, response.status_code, response.text)
            sentence = response.json()["error"]
            assert 0 < len(sentence) < 200
            assert "Traceback" not in sentence
            assert "/" not in re.sub(r"PNG|JPEG|DICOM|NIfTI|multipart/form-data", "", sentence), (upload.name, sentence)
    assert sum(map(resident_bytes, replicas)) - before < 512 * MEBIBYTE
    assert endpoint.diagnose(FORMATS["png"]).status_code == 200


def test_an_upload_beyond_all_measure_is_refused_before_it_is_read(endpoint: Endpoint) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield bytes(MEBIBYTE)

    url = f"{endpoint.url}/v1/diagnose"
    announced = {**endpoint.headers(), "Content-Length": str(10**12)}
    assert requests.post(url, data=b"", headers=announced, timeout=60).status_code == 413
    headers = {**endpoint.headers(), "Content-Type": "multipart/form-data; boundary=x"}
    with suppress(requests.ConnectionError):  # that the server hangs up in the middle of it is an answer, too
        assert requests.post(url, data=endless(), headers=headers, timeout=60).status_code in (400, 413)
    many = endpoint.diagnose(*[NOISE] * 65)
    assert many.status_code in (400, 413), many.text
    assert endpoint.diagnose(NOISE).status_code == 200


def test_overload_is_told_to_come_back_and_nothing_hangs(endpoint: Endpoint) -> None:
    with ThreadPoolExecutor(160) as pool:
        responses = list(pool.map(lambda _: endpoint.diagnose(NOISE, NOISE, NOISE), range(320)))
    counts = {status: sum(response.status_code == status for response in responses) for status in (200, 503)}
    assert counts[200] + counts[503] == 320, {response.status_code for response in responses}
    assert min(counts.values()) > 0
    for response in responses:
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]


def test_the_readmes_three_lines_get_a_diagnosis(endpoint: Endpoint, tmp_path: Path) -> None:
    key = endpoint.keys["hospital-00"]
    environment = {**os.environ, "KEY": key}
    lines = [block_with("README.md", "bash", "curl"), block_with("README.md", "python", "requests.post")]
    curl, python = (
        block.replace("http://127.0.0.1:8000", endpoint.url).replace('"KEY"', f'"{key}"') for block in lines
    )
    for words in (["bash", "-euc", curl], [sys.executable, "-W", "ignore", "-c", python]):
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "anomaly_score" in done.stdout


def wait_until(endpoint: Endpoint, version: str) -> None:
    deadline = time.monotonic() + 60
    while requests.get(f"{endpoint.url}/readyz", timeout=60).json().get("version") != version:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_version_is_rolled_out_and_back_without_a_lost_request(endpoint: Endpoint) -> None:
    with traffic(endpoint, NOISE) as responses:
        for number in ("2", "1"):
            RunVersions(endpoint.run).promote(number)
            wait_until(endpoint, number)
            while json.loads(responses[-1].content)["answers"][0]["model_version"] != number:
                time.sleep(0.05)
    assert {response.status_code for response in responses} == {200}
    versions = [response.json()["answers"][0]["model_version"] for response in responses]
    assert set(versions) == {"1", "2"}
    labels = {tuple(response.json()["answers"][0]["probabilities"].values()) for response in responses}
    assert np.ptp(np.array(sorted(labels)), axis=0).max() < 1e-4  # both versions hold the same model


@pytest.mark.parametrize(
    "part",
    ["Diagnostician", *(pytest.param(part, marks=pytest.mark.slow) for part in ("Purifying", "Auditor", "Ingress"))],
)
def test_a_killed_replica_costs_at_most_what_it_had_in_its_hands(endpoint: Endpoint, part: str) -> None:
    (expected,) = endpoint.diagnose(NOISE).json()["answers"]
    (victim,) = endpoint.processes(f"ray::ServeReplica:fedplatform:{part}")
    with traffic(endpoint, NOISE) as responses:
        while not responses:
            time.sleep(0.05)
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while endpoint.processes(f"ray::ServeReplica:fedplatform:{part}") in ([], [victim]):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        good = sum(response.status_code == 200 for response in responses)
        while sum(response.status_code == 200 for response in responses) < good + 4:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    for response in responses:
        if response.status_code == 200:
            (answer,) = response.json()["answers"]
            assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-4)
        else:
            assert response.status_code == 503, response.text
            assert int(response.headers["retry-after"]) >= 1
    assert isinstance(verify(endpoint.run / "serving" / "audit.jsonl"), Verified)


def test_what_the_alerts_ask_for_is_counted(endpoint: Endpoint) -> None:
    endpoint.diagnose(NOISE)
    wanted = {"ray_fedplatform_requests_total", "ray_fedplatform_scans_total", "ray_fedplatform_under_way"}
    wanted |= {"ray_fedplatform_stage_milliseconds_bucket"}
    deadline = time.monotonic() + 60
    while True:
        text = requests.get(endpoint.metrics, timeout=60).text
        if wanted <= set(re.findall(r"^(ray_fedplatform_\w+)\{", text, re.MULTILINE)):
            break
        assert time.monotonic() < deadline, sorted(set(re.findall(r"^(ray_fedplatform\w+)", text, re.MULTILINE)))
        time.sleep(0.5)
    assert 'stage="examine"' in text
    assert re.search(r'ray_fedplatform_scans_total\{[^}]*flagged="true"', text)


def test_the_noise_of_a_flagged_scan_is_the_hospitals_own(endpoint: Endpoint) -> None:
    secrets = {secret_path(endpoint.run, hospital_id).read_bytes() for hospital_id in HOSPITALS}
    assert len(secrets) == 2
    assert torch.is_tensor(library(endpoint, "hospital-01").noise.draw(torch.zeros(1, 1, 16, 16), 1))
