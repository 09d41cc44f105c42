"""Prometheus scrapes a run and the endpoint, and every query of the dashboard and of the alerts is one it answers."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import yaml
from endpoint_process import Endpoint
from PIL import Image

import fedplatform as fp
from actors.run_metrics import RunMetrics
from fedplatform.core.messages import HospitalState
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.run import run

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
QUERIES = {panel["title"]: panel["targets"][0]["expr"] for panel in DASHBOARD["panels"]}
OF_A_RUN = {title: query for title, query in QUERIES.items() if "fedplatform_run_" in query}
CONDITIONAL = {"Until the gateway's certificate ends"}  # only where hospitals are outside
SMALL = {
    **{"data": "lesions", "size": 16, "scans": 160, "hospitals": 4, "byzantine": 1, "attack": "sign_flip"},
    **{"rule": "trust", "root_size": 20, "partition": "iid", "model": "small_cnn(width=4)", "rounds": 3},
}

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Debian's package prometheus is not here"
)


@contextmanager
def prometheus(target: str) -> Iterator[str]:
    """A Prometheus that scrapes one address every second; its own URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        jobs = [{"job_name": "ray", "static_configs": [{"targets": [target]}]}]
        rules = str(ROOT / "deploy/prometheus/alerts.yaml")
        settings = {"global": {"scrape_interval": "1s"}, "rule_files": [rules], "scrape_configs": jobs}
        (Path(folder) / "prometheus.yml").write_text(yaml.safe_dump(settings))
        process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{port}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def answer(url: str, query: str) -> list[dict[str, object]]:
    """The series that a query returns."""
    asked = urllib.parse.urlencode({"query": query.replace("$run", ".*")})
    with urllib.request.urlopen(f"{url}/api/v1/query?{asked}", timeout=30) as found:
        return list(json.loads(found.read())["data"]["result"])


def unanswered(url: str, titles: set[str]) -> set[str]:
    """The panels whose queries return no series within two minutes."""
    until = time.monotonic() + 120
    while titles and time.monotonic() < until:
        time.sleep(1)
        with suppress(OSError):  # it starts
            titles = {title for title in titles if not answer(url, QUERIES[title])}
    return titles


def newest_round(url: str, expected: int) -> list[str]:
    """The runs whose newest round is the expected one, once there are any within two minutes: Ray exports in turns."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        shown = answer(url, f"ray_fedplatform_run_round == {expected}")
        if shown:
            return [str(series["metric"]["run"]) for series in shown]  # type: ignore[index]
        time.sleep(1)
    return []


@needs_prometheus
def test_every_panel_of_a_run_shows_something(tmp_path: Path) -> None:
    with fp.Ray("local", num_hosts=1) as engine:
        (node,) = ray.nodes()
        with prometheus(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}") as url:
            run(Experiment.from_settings(SMALL), engine=engine, runs=tmp_path, name="shown")
            assert not unanswered(url, set(OF_A_RUN) - CONDITIONAL)
            assert newest_round(url, 3) == ["shown"]
            states = answer(url, "ray_fedplatform_run_hospital_state == 1")
            assert len(states) == 4, "each hospital is in one state"


@needs_prometheus
@pytest.mark.slow
def test_every_panel_of_the_endpoint_shows_something(endpoint: Endpoint) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 28), np.uint8)).save(picture, "PNG")
    asking = True

    def ask() -> None:
        while asking:
            endpoint.diagnose(picture.getvalue())

    with prometheus(urllib.parse.urlsplit(endpoint.metrics).netloc) as url:
        asker = threading.Thread(target=ask)
        asker.start()
        try:
            assert not unanswered(url, set(QUERIES) - set(OF_A_RUN))
        finally:
            asking = False
            asker.join()


@needs_prometheus
def test_the_rules_are_such_that_prometheus_takes_them() -> None:
    checked = subprocess.run(
        ["promtool", "check", "rules", str(ROOT / "deploy/prometheus/alerts.yaml")], capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def test_every_metric_of_dashboard_and_alerts_is_one_that_the_code_has() -> None:
    code = "".join(path.read_text() for path in (ROOT / "actors/run_metrics.py", ROOT / "actors/endpoint/metrics.py"))
    texts = [*QUERIES.values(), (ROOT / "deploy/prometheus/alerts.yaml").read_text()]
    names = {name for text in texts for name in re.findall(r"ray_fedplatform_(\w+)", text)}
    assert len(names) > 12
    for name in names:
        bare = re.sub(r"_(total|bucket)$", "", name).removeprefix("run_")
        assert f'"{bare}"' in code or f'"fedplatform_{bare}"' in code, name


def test_absences_in_a_row_are_counted_and_rest_is_none(tmp_path: Path) -> None:
    _, reports = run(
        Experiment.from_settings(SMALL), engine=InProcessEngine(), runs=tmp_path, name="one", tracked=False
    )
    metrics = RunMetrics("one")
    first = reports[0]
    for state, rounds in (
        (HospitalState.LATE, 1), (HospitalState.RESTING, 1), (HospitalState.CRASHED, 2), (HospitalState.REPORTED, 0),
    ):  # fmt: skip
        metrics.round_finished([replace(first, hospitals=(replace(first.hospitals[0], state=state),))])
        assert metrics.absent[first.hospitals[0].hospital_id] == rounds
