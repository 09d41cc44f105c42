"""What many tests share: a small real federation's shards, and a Ray for a module."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import pytest
from endpoint_process import Endpoint, published_copy, started
from tiny_defence import DEFENCE, RUN, write_spots

from fedplatform.defence.settings import DefenceSettings
from fedplatform.experiments.defence.train import defend
from fedplatform.experiments.engine import InProcessEngine
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.run import partition_data, run

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

# The files that take longest. Begun last, one of them would leave the other worker with nothing to do.
LONG_FILES = (
    *("test_docs", "test_faults", "test_faults_network", "test_robustness", "test_cluster", "test_benchmark"),
    *("test_defended_run", "test_ray_cohort", "test_tune", "test_endpoint", "test_cli", "test_serving_intake"),
    "test_joining",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files; the order within a file stays."""
    place = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


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
    write_spots(file)
    return file


@pytest.fixture(scope="session")
def undefended(spots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that has no defence yet. Nobody writes here; copy it."""
    experiment = Experiment.from_settings({**RUN, "data": str(spots)})
    folder, _ = run(experiment, engine=InProcessEngine(), runs=tmp_path_factory.mktemp("runs"), name="spots")
    return folder.path


@pytest.fixture(scope="session")
def stages() -> list[str]:
    """The stages of training in the order in which the rounds of ``defended`` were told of."""
    return []


@pytest.fixture(scope="session")
def defended(undefended: Path, stages: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run with its defence, trained in one process. Nobody writes here; copy it."""
    folder = tmp_path_factory.mktemp("defended") / "spots"
    shutil.copytree(undefended, folder)
    defend(
        folder,
        DefenceSettings.from_settings(DEFENCE),
        engine=InProcessEngine(),
        observer=lambda stage, _rounds, _report: stages.append(stage),
    )
    return folder


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A Ray of our own, whatever else runs on this machine; of a module, for others bring up theirs."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        logging_level="error",
    )
    yield
    ray.shutdown()


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


@pytest.fixture(scope="session")
def endpoint(defended: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """One server for all tests that speak HTTP; who changes what it serves puts it back."""
    folder = tmp_path_factory.mktemp("endpoint")
    with started(published_copy(defended, folder), folder, "--rate", "10000") as server:
        yield server
