"""What many tests share: a small real federation's shards, and a Ray for a module."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import pytest
import tiny_defence
from endpoint_process import Endpoint, started
from filelock import FileLock
from own_ray import ray_of_our_own

from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.run import partition_data

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SMALL = {
    "data": "fedplatform.data.lesions:Lesions(hospitals=5, patients_per_hospital=40)",
    "size": 32,
    "hospitals": 5,
    "byzantine": 1,
    "rule": "nnm+trimmed_mean",
    "partition": "iid",
    "rounds": 2,
    "model": "small_cnn(width=4)",
    "root_size": 20,
}

ROOT = Path(__file__).parents[1]

# What the tests of a file use, by marker; CONTRIBUTING.md says which tier runs which. A file that stands nowhere here
# holds unit tests, unless a fixture of a test says otherwise.
MARKERS = {
    "cluster": (
        "test_cluster",
        "test_faults",
        "test_faults_network",
        "test_joining",
        "test_operating",
        "test_documented_cluster",
    ),
    "ray": ("test_ray_cohort", "test_tune", "test_metrics", "test_run_log", "test_stopping"),
    "serve": ("test_endpoint", "test_endpoint_schema", "test_gateway", "test_http", "test_proxy"),
    "docs": ("test_docs",),
    "training": (
        *("test_benchmark", "test_checkpoint", "test_defended_run", "test_robustness", "test_threats", "test_cli"),
        *(
            "test_attacks_harm",
            "test_backdoors",
            "test_optigradtrust",
            "test_purifier",
            "test_serving_engine",
            "test_training_faults",
        ),
        *(
            "test_secure_federation",
            "test_api",
            "test_start_up",
            "test_personal",
            "test_serving_diagnose",
            "test_bundle",
            "test_weights",
            "test_starting_weights",
        ),
        *("test_federation", "test_outside", "test_tracking", "test_serving_intake", "test_speed", "test_tune_parts"),
        *(
            "test_masked_autoencoder",
            "test_residual_sensor",
            "test_training",
            "test_sampling",
            "test_devices",
            "test_evasion",
            "test_certificate",
        ),
        *(
            "test_own_data",
            "test_run_own_data",
            "test_endpoint_parts",
            "test_trust_scorers",
            "test_data_sources",
            "test_defended_classifier",
            "test_export",
            "test_participation",
            "test_selection",
            "test_subgroups",
            "test_scaffold",
            "test_cross_site",
            "test_withdrawal",
            "test_tasks_run",
            "test_gateway_status",
            "test_answers",
        ),
    ),
}
OF_FIXTURE = {"browser": "browser", "endpoint": "serve", "ray_here": "ray", "machines": "cluster"}

# The files that take longest, the longest first: begun last, one of them would leave the other worker with nothing to
# do. The first of them needs what is trained for all, a minute where it is not in `.cache` yet; the second does not.
LONG_FILES = (
    *("test_faults", "test_faults_network", "test_cluster", "test_joining", "test_quickstart"),
    *("test_robustness", "test_docs", "test_endpoint", "test_tune", "test_ray_cohort", "test_benchmark", "test_api"),
    *("test_defended_run", "test_secure_federation", "test_gateway", "test_report", "test_defence_report"),
    *("test_cli", "test_threats", "test_serving_intake", "test_serving_engine", "test_serving_diagnose"),
    *("test_checkpoint", "test_training_faults", "test_outside", "test_withdrawal"),
)

AT_ENDPOINT = ("test_endpoint", "test_endpoint_in_service", "test_endpoint_page", "test_endpoint_schema")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by what it uses, and begin with the long files; the order within a file stays."""
    of_file = {name: marker for marker, names in MARKERS.items() for name in names}
    for item in items:
        found = {OF_FIXTURE[name] for name in getattr(item, "fixturenames", ()) if name in OF_FIXTURE}
        found |= {of_file[item.path.stem]} if item.path.stem in of_file else set()
        for marker in found:
            item.add_marker(marker)
        if not found and not item.get_closest_marker("slow"):
            item.add_marker("unit")
    place = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """A file goes to one worker, and all files that speak to ``endpoint`` to the same: it is one server."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "endpoint" if Path(file).stem in AT_ENDPOINT else file

    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def one_database(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One MLflow database for all tests of a process: to make its tables takes seconds.

    Where it lies when nobody says so, those tests look at that take the variable away.
    """
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="session")
def small() -> Experiment:
    """Five hospitals, one of them an attacker, a network of a few thousand weights, two rounds."""
    return Experiment.from_settings(SMALL)


@pytest.fixture(scope="session")
def shards(small: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of the small experiment, written once."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    partition_data(small, folder)
    return folder


@pytest.fixture(scope="session")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An npz file of 500 tiny scans."""
    file = tmp_path_factory.mktemp("spots") / "spots.npz"
    tiny_defence.write_spots(file)
    return file


def digest_of_training() -> str:
    """Of all code that decides what the trained fixture is."""
    folders = ("core", "data", "attacks", "learning", "defence", "federated", "experiments", "serving")
    sources = [file for name in folders
               for file in (ROOT / "fedplatform" / name).rglob("*.py")]  # fmt: skip
    files = [*sources, Path(tiny_defence.__file__), ROOT / "constraints.txt"]
    return sha256(b"".join(sorted(sha256(file.read_bytes()).digest() for file in files))).hexdigest()[:16]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run in four states, trained once, and ``stages.json``.

    ``undefended/spots`` and ``defended/spots`` are the run without and with its defence, ``published/spots`` the latter
    with two versions to serve. ``bare`` is a version without a defence. They are kept in ``.cache/`` for later calls,
    under a digest of the code that they depend on.
    """
    kept = ROOT / ".cache" / "trained" / digest_of_training()
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.with_suffix(".lock")):
        if not kept.exists():
            making = tmp_path_factory.mktemp("making")
            tiny_defence.make(making)
            shutil.move(making, kept)
    return kept


@pytest.fixture(scope="session")
def undefended(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that has no defence yet. Nobody writes here; copy it."""
    return Path(shutil.copytree(trained / "undefended" / "spots", tmp_path_factory.mktemp("runs") / "spots"))


@pytest.fixture(scope="session")
def stages(trained: Path) -> list[str]:
    """The stages of training in the order in which the rounds of ``defended`` were told of."""
    told: list[str] = json.loads((trained / "stages.json").read_text())
    return told


@pytest.fixture(scope="session")
def defended(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run with its defence, trained in one process. Nobody writes here; copy it."""
    return Path(shutil.copytree(trained / "defended" / "spots", tmp_path_factory.mktemp("defended") / "spots"))


@pytest.fixture(scope="session")
def published(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the defended run with two versions to serve. Nobody writes here; copy it."""
    return Path(shutil.copytree(trained / "published" / "spots", tmp_path_factory.mktemp("published") / "spots"))


@pytest.fixture(scope="session")
def bare_version(trained: Path) -> Path:
    """Bundles of the run's hospitals without a defence, as a version holds them. Nobody writes here; copy it."""
    return trained / "bare"


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A Ray of our own, whatever else runs on this machine; of a module, for others bring up theirs."""
    with ray_of_our_own():
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, or a skip; of a module, for nothing else can call ``asyncio.run`` while Playwright is active."""
    from playwright.sync_api import expect, sync_playwright
    from watched_page import CHROMIUM, PATIENCE_MS

    if not CHROMIUM.exists():
        pytest.skip(f"a real browser is looked for at {CHROMIUM}")
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE_MS)
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"], timeout=PATIENCE_MS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """A wide page that must not complain and must ask for no file but those of the test."""
    from watched_page import watched_page

    with watched_page(browser, tmp_path.as_uri(), viewport={"width": 1200, "height": 844}) as page:
        yield page


@pytest.fixture
def telephone(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """The same on the screen of a telephone."""
    from watched_page import watched_page

    size = {"width": 390, "height": 844}
    with watched_page(browser, tmp_path.as_uri(), viewport=size, is_mobile=True) as page:
        yield page


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, or a skip that says where it was looked for."""
    places = [Path(os.environ["FEDPLATFORM_DATA"])] if "FEDPLATFORM_DATA" in os.environ else []
    for place in [*places, Path("data"), Path("../shared/data")]:
        if (place / "br35h_128.parquet").exists():
            return place
    pytest.skip("no real data here: set FEDPLATFORM_DATA to a folder with br35h_128.parquet")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A place nobody can write to, not even root: a folder would have to replace a file."""
    place = tmp_path / "occupied"
    place.write_text("this is a file")
    yield place
    shutil.rmtree(tmp_path, ignore_errors=True)


WEB = ("--root-path", "/scan", "--allow-origin", "https://pacs.example")


@pytest.fixture(scope="session")
def endpoint(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """One server for all tests that speak HTTP; who changes what it serves puts it back."""
    folder = tmp_path_factory.mktemp("endpoint")
    run = Path(shutil.copytree(published, folder / "spots"))
    with started(run, folder, "--rate", "10000", *WEB) as server:
        yield server
