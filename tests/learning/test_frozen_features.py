"""The frozen part of a network answers from a file: the same answers, computed once."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import fedplatform as fp
from fedplatform.learning.models import Classifier
from fedplatform.learning.models.efficientnet_lite0 import EfficientNetLite0
from fedplatform.learning.models.freezing import freeze, training_mode
from fedplatform.learning.models.frozen_features import FOLDER, FrozenFeatures, frozen_lead, remember

FROZEN = ["conv_stem", "bn1", "blocks.0", "blocks.1.0"]


def classifier(*, seed: int = 0, frozen: list[str] = FROZEN) -> Classifier:
    torch.manual_seed(seed)
    network = Classifier(EfficientNetLite0(stages=2, enlarge=32)(channels=1, num_classes=2, size=16))
    freeze(network, [f"body.{name}" for name in frozen])
    return network


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path / "features"))
    return tmp_path / "features"


@pytest.fixture
def scans() -> torch.Tensor:
    return torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def calls_of(module: nn.Module) -> list[int]:
    """A list that grows by the number of scans whenever a module is asked."""
    calls: list[int] = []
    module.register_forward_hook(lambda _, arguments, __: calls.append(len(arguments[0])))
    return calls


def test_answers_and_gradients_are_those_of_the_network(folder: Path, scans: torch.Tensor) -> None:
    plain, remembering = classifier(), classifier()
    remember(remembering)
    for network in (plain, remembering):
        training_mode(network)
        network.body.head[2].p = 0.0  # type: ignore[union-attr, index]
        network(scans).square().sum().backward()
    torch.testing.assert_close(remembering.eval()(scans), plain.eval()(scans), atol=1e-5, rtol=1e-4)
    for (name, one), other in zip(plain.named_parameters(), remembering.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, atol=1e-4, rtol=1e-3)
    assert len(list(folder.glob("*.sqlite"))) == 1


def test_what_was_computed_once_is_read_by_the_next_network_in_any_order(folder: Path, scans: torch.Tensor) -> None:
    first, second = classifier().eval(), classifier().eval()
    for network in (first, second):
        remember(network)
    before = first(scans)
    calls = calls_of(second.body.conv_stem)  # type: ignore[arg-type]
    assert torch.equal(second(scans.flip(0)), before.flip(0))
    assert calls == []
    second(torch.cat([scans, torch.zeros(1, 1, 16, 16)]))
    assert calls == [1], "only the new scan"


@pytest.mark.usefixtures("folder")
def test_it_answers_in_one_thread_after_the_other(scans: torch.Tensor) -> None:
    network = classifier().eval()
    remember(network)
    before = network(scans)
    with ThreadPoolExecutor(1) as other:
        assert torch.equal(other.submit(network, scans).result(), before)


def test_other_frozen_weights_have_a_file_of_their_own(folder: Path, scans: torch.Tensor) -> None:
    networks = [classifier(seed=seed).eval() for seed in (0, 1)]
    for network in networks:
        remember(network)
        torch.testing.assert_close(network(scans), copy.deepcopy(network)(scans), atol=1e-5, rtol=1e-4)
    assert len(list(folder.glob("*.sqlite"))) == 2


def test_an_attacker_gets_the_gradient_of_the_scan(folder: Path, scans: torch.Tensor) -> None:
    network = classifier().eval()
    remember(network)
    attacked = scans.clone().requires_grad_()
    network(attacked).sum().backward()
    assert attacked.grad is not None
    assert attacked.grad.abs().sum() > 0
    assert not list(folder.glob("*.sqlite")), "and nothing was written"


def test_a_copy_has_none_of_it_and_an_unfrozen_network_has_nothing_to_keep(folder: Path) -> None:
    network = classifier()
    remember(network)
    assert isinstance(network.features, FrozenFeatures)
    assert copy.deepcopy(network).features is None
    lead, rest = frozen_lead(EfficientNetLite0(stages=2)(channels=1, num_classes=2, size=16))
    assert lead == []
    assert len(rest) == 7


@pytest.mark.slow
def test_a_run_with_the_folder_is_the_run_without(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        **{"data": "lesions", "size": 32, "scans": 240, "hospitals": 3, "byzantine": 0, "rule": "mean", "rounds": 2},
        **{"model": "efficientnet_lite0(stages=3, enlarge=32)", "weights": "imagenet", "algorithm": "fedavg"},
        **{"freeze": "conv_stem,bn1,blocks.0,blocks.1", "augmentation": "orientation", "root_size": 0},
        "partition": "iid",
    }
    for name in ("first", "second"):
        fp.run(**settings, folder=tmp_path / name)
    monkeypatch.delenv(FOLDER)
    fp.run(**settings, folder=tmp_path / "without")
    found = [load_file(tmp_path / name / "global.safetensors") for name in ("first", "second", "without")]
    weights = [np.concatenate([value.ravel() for value in one.values()]) for one in found]
    assert np.array_equal(weights[0], weights[1]), "whether it was computed or read changes no bit"
    np.testing.assert_allclose(weights[0], weights[2], atol=2e-3)
