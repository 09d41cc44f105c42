"""How the GPUs of a cluster are dealt out to the server and to actors; Ray counts here GPUs that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from own_ray import ray_of_our_own

from actors.engine import RayEngine
from actors.placement import ActorPlacement, GpuShares, with_share
from fedplatform.core.compute import Compute, ComputeError
from fedplatform.experiments.engine import InProcessEngine, cohort_plan
from fedplatform.experiments.experiment import Experiment


@pytest.mark.parametrize("beside_server", [True, False])
@pytest.mark.parametrize("gpus", [1, 2, 3, 8])
@pytest.mark.parametrize("hosts", [1, 2, 4, 7, 16])
def test_all_shares_fit_on_the_gpus(hosts: int, gpus: int, beside_server: bool) -> None:
    shares = GpuShares.of(gpus, hosts=hosts, beside_server=beside_server)
    assert shares.server == (shares.host if beside_server else 0)
    on_each = int(1 / shares.host + 1e-9)
    assert on_each * gpus >= hosts + beside_server, "every actor finds a GPU with room"
    assert 0 < shares.host <= 1
    assert shares.host == round(shares.host, 4), "Ray counts no finer"


def test_without_a_gpu_nobody_asks_for_one() -> None:
    assert GpuShares.of(0, hosts=4, beside_server=True) == GpuShares(0.0, 0.0)


def test_an_actor_without_a_share_computes_on_its_cpu(small: Experiment, shards: Path, tmp_path: Path) -> None:
    plan = cohort_plan(small.replace(device="auto"), shards, state_folder=tmp_path)
    names = small.inside
    assert ActorPlacement(names).plan(plan).training.compute.device == "cpu"
    assert ActorPlacement(names, {"num_gpus": 0.5}).plan(plan).training.compute.device == "auto"
    assert with_share(Compute("mps"), 0) == Compute("mps"), "which Ray does not count"


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    """A Ray that is told of two GPUs."""
    with ray_of_our_own(num_gpus=2):
        yield


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("two_gpus")
def test_hospitals_and_server_share_the_gpus_and_leave_none_over(
    small: Experiment, shards: Path, tmp_path: Path
) -> None:
    def weights(engine: InProcessEngine | RayEngine, folder: Path) -> np.ndarray:
        with engine.launch(small.replace(rounds=1), shards, state_folder=folder) as federation:
            list(federation.reports())
            if isinstance(engine, RayEngine):
                assert ray.available_resources().get("GPU", 0) == pytest.approx(0, abs=1e-3)
            return federation.outcome().weights

    engine = RayEngine(num_hosts=3)
    assert engine.computes_on(small).startswith("2 GPUs, 0.5 for each of 3 actors, float32, fast kernels: bits differ")
    assert engine.computes_on(small.replace(device="cpu")) == ""
    # The GPUs are made up, so hospitals find none in their processes and train on the CPU.
    assert weights(engine, tmp_path / "ray").tobytes() == weights(InProcessEngine(), tmp_path / "here").tobytes()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("two_gpus")
def test_on_ray_nobody_chooses_a_gpu_by_its_number(small: Experiment) -> None:
    with pytest.raises(ComputeError, match=r"^--device cuda:1: Ray deals the GPUs out; --device cuda asks for them$"):
        RayEngine().computes_on(small.replace(device="cuda:1"))
