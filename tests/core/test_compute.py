"""What networks compute with: words, what they mean on this machine, and one line where it has no such device."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from other_device import CPU, ELSEWHERE, OtherDevice

from fedplatform.cli import fedplatform
from fedplatform.core.compute import CUBLAS, Compute, ComputeError, host_copy, known_device
from fedplatform.experiments.experiment import Experiment, ExperimentError

without_gpu = pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="this machine has a GPU"
)


@without_gpu
def test_without_a_gpu_auto_is_the_cpu() -> None:
    here = Compute().here()
    assert (here.device, here.is_cpu, str(here)) == ("cpu", True, "cpu, float32")


@without_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_gpu_that_is_not_there_is_one_line(device: str) -> None:
    with pytest.raises(ComputeError, match=rf"^--device {device}: this machine has no .* GPU; --device auto takes"):
        Compute(device).here()


@without_gpu
def test_a_run_on_a_gpu_that_is_not_there_ends_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    words = ["run", "lesions", "--engine", "local", "--device", "cuda", "--runs", str(tmp_path)]
    done = CliRunner().invoke(fedplatform, words)
    assert done.exit_code == 1
    assert not list(tmp_path.iterdir())
    assert re.fullmatch(r"fedplatform: --device cuda: this machine has no CUDA GPU; --device auto .*\n", done.stderr)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3", "mps"])
def test_an_experiment_keeps_the_word_that_was_given(device: str) -> None:
    experiment = Experiment.from_settings({"device": device, "precision": "bf16", "kernels": "deterministic"})
    assert experiment.settings()["device"] == device
    assert experiment.local_training(channels=1, num_classes=2).compute == Compute(device, "bf16", "deterministic")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_a_word_that_names_no_device_is_refused(device: str) -> None:
    with pytest.raises(ComputeError, match="a device is auto, cpu, cuda, cuda:N or mps"):
        known_device(device)
    with pytest.raises(ExperimentError, match="device: a device is auto, cpu, cuda, cuda:N or mps, got"):
        Experiment.from_settings({"device": device})


def test_bfloat16_is_for_forward_passes_and_for_no_others() -> None:
    layer, scans = torch.nn.Linear(3, 2), torch.rand(4, 3)
    halved = Compute("cpu", "bf16")
    with halved.autocast():
        assert layer(scans).dtype == torch.bfloat16
    with Compute("cpu").autocast(), halved.computing():
        assert layer(scans).dtype == torch.float32


def test_weights_first_met_without_a_gradient_have_one_afterwards() -> None:
    layer, scans = torch.nn.Linear(3, 2), torch.rand(4, 3)
    with Compute("cpu", "bf16").autocast():
        with torch.no_grad():
            layer(scans)
        loss = layer(scans).sum()
    loss.backward()
    assert layer.weight.grad is not None


def test_only_a_gpu_with_fast_kernels_gives_other_bits_the_next_time() -> None:
    assert "bits differ from run to run, --kernels deterministic" in Compute("cuda").on_gpu
    assert "bits" not in replace(Compute("cuda"), kernels="deterministic").on_gpu


def test_arrays_and_tensors_go_there_and_back() -> None:
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    values.flags.writeable = False  # as what Ray and Arrow hand out
    with OtherDevice():
        there = Compute(str(ELSEWHERE)).sent(values)
        assert there.device == ELSEWHERE
        back = host_copy(there)
    assert back.device == CPU
    np.testing.assert_array_equal(back.numpy(), values)
    assert not np.shares_memory(Compute("cpu").sent(values).numpy(), values)


def test_scans_stay_on_a_device_within_their_share_of_it() -> None:
    assert Compute(str(ELSEWHERE)).has_room(1 << 40), "one that does not say how much memory it has"
    assert not Compute(str(ELSEWHERE), scans_share=0.0).has_room(1)
    assert not Compute("cpu").has_room(1), "the host has them anyway"


def flags() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return cudnn.allow_tf32, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()


def test_kernels_of_a_gpu_are_chosen_while_networks_compute_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CUBLAS, raising=False)
    before = flags()
    with Compute("cuda:0").computing():
        assert flags() == (False, *before[1:]), "float32 without TensorFloat-32"
        assert CUBLAS not in os.environ
    with Compute("cuda:0", kernels="deterministic").computing():
        assert flags() == (False, True, True)
        assert os.environ[CUBLAS] == ":4096:8"
    assert flags() == before
    with Compute("cpu", kernels="deterministic").computing():
        assert flags() == before, "a CPU repeats anyway"
