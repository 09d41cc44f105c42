from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fedplatform.defence import DefendedClassifier, DiffusionPurifier, GaussianBlur, OneShot
from fedplatform.defence.presets import HospitalParts
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.learning.models import MODELS, Classifier, NoisePredictor, TimmModel
from fedplatform.serving.onnx_engine import Exported, accelerated, exported, on_onnx_runtime

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def parts(defended: Path) -> HospitalParts:
    run = DefendedRun(defended)
    return run.hospital(run.tested[0])


@pytest.fixture(scope="module")
def scans(parts: HospitalParts) -> torch.Tensor:
    return parts.test[0][:24]


@pytest.fixture(scope="module")
def whole(parts: HospitalParts, scans: torch.Tensor) -> DefendedClassifier:
    """The full defence with a threshold that stops half of the scans, so that both sides of the gate are compared."""
    fitted = parts.defended("full")
    with torch.no_grad():
        lower, upper = fitted.examine(scans).scores.sort().values[len(scans) // 2 - 1 : len(scans) // 2 + 1]
    middle = float(lower + upper) / 2
    depths = replace(fitted.gate.flagged_depth, low=middle, high=middle + 1)
    return replace(fitted, gate=replace(fitted.gate, threshold=middle, flagged_depth=depths))


@pytest.fixture(scope="module")
def models(whole: DefendedClassifier, parts: HospitalParts) -> Exported:
    return exported(whole, parts.test[0][:1])


def test_every_network_of_a_defence_is_exported(models: Exported) -> None:
    assert set(models.models) == {"classifier", "autoencoder", "sensor", "network"}
    assert models.left == {}


@pytest.mark.slow
def test_a_purifier_that_works_in_tiles_is_exported_with_its_tiles(parts: HospitalParts) -> None:
    network = NoisePredictor(width=8, halvings=1, t_max=260, tile=48)(channels=1, num_classes=2, size=64)
    purifier = DiffusionPurifier(network.eval(), OneShot())
    defended = parts.through(purifier, depth=50, classifier=parts.classifier)
    images = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    found = exported(defended, images[:1])
    assert "network" in found.models, found.left
    with torch.no_grad():
        depth, noise = torch.tensor([20, 50, 90]), torch.zeros_like(images)
        served = on_onnx_runtime(defended, {"network": found.models["network"]}).purifier(images, depth, noise)
        torch.testing.assert_close(served, purifier(images, depth, noise), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("batch", [1, 5, 24])
def test_onnx_runtime_answers_as_pytorch_does_at_every_stage(
    whole: DefendedClassifier, models: Exported, scans: torch.Tensor, batch: int
) -> None:
    fast = on_onnx_runtime(whole, models.models)
    flagged = 0
    with torch.no_grad():
        for images in scans.split(batch):
            eager, onnx = whole.passage(images), fast.passage(images)
            for name in ("logits", "scores", "purified"):
                difference = (getattr(eager, name) - getattr(onnx, name)).abs().max()
                assert difference < TOLERANCE, name
            assert torch.equal(eager.flagged, onnx.flagged)
            assert torch.equal(eager.depth, onnx.depth)
            assert torch.equal(eager.votes, onnx.votes)
            assert [d.label for d in whole.conclude(eager)] == [d.label for d in fast.conclude(onnx)]
            flagged += int(onnx.flagged.sum())
    assert 0 < flagged < len(scans)


def test_a_scan_gets_the_same_answer_alone_and_in_a_batch(
    whole: DefendedClassifier, models: Exported, scans: torch.Tensor
) -> None:
    fast = on_onnx_runtime(whole, models.models)
    with torch.no_grad():
        together = fast.passage(scans).logits
        alone = torch.cat([fast.passage(scan[None]).logits for scan in scans])
    assert (together - alone).abs().max() < TOLERANCE


def test_the_two_halves_and_a_certificate_work_on_onnx_runtime(
    whole: DefendedClassifier, models: Exported, scans: torch.Tensor
) -> None:
    fast = on_onnx_runtime(whole, models.models)
    with torch.no_grad():
        halves = fast.treat(scans, fast.examine(scans))
        assert torch.equal(halves.logits, fast.passage(scans).logits)

    def proved(defended: DefendedClassifier) -> tuple[object, ...]:
        generator = torch.Generator().manual_seed(3)
        certificate = defended.certify(scans[0], sigma=0.1, samples=40, generator=generator)
        return certificate.label, certificate.counts

    assert proved(fast) == proved(whole)


def test_a_gradient_is_refused_and_not_taken_for_zero(whole: DefendedClassifier, models: Exported) -> None:
    fast = on_onnx_runtime(whole, models.models)
    images = torch.rand(1, 1, 16, 16, requires_grad=True)
    with pytest.raises(RuntimeError, match="no gradient"):
        fast.logits(images)


def test_what_no_graph_can_say_stays_on_pytorch_and_is_said(whole: DefendedClassifier, scans: torch.Tensor) -> None:
    class LooksAtValues(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.network(images if float(images.sum()) > 0 else -images)
            return answer

    odd = replace(whole, classifier=LooksAtValues(whole.classifier), purifier=GaussianBlur(), detector=None)
    made = exported(odd, scans[:1])
    assert made.models == {}
    assert list(made.left) == ["classifier"]
    with torch.no_grad():
        assert torch.equal(on_onnx_runtime(odd, made.models).logits(scans), odd.logits(scans))


def test_a_network_that_answers_otherwise_in_a_graph_stays_on_pytorch(
    whole: DefendedClassifier, scans: torch.Tensor
) -> None:
    class CountsItsScans(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.network(images) * len(images)
            return answer

    odd = replace(whole, classifier=CountsItsScans(whole.classifier), purifier=GaussianBlur(), detector=None)
    made = exported(odd, scans[:1])
    assert "classifier" in made.left
    assert made.models == {}


@pytest.mark.parametrize("name", ["small_resnet", "resnet10t"])
def test_the_other_classifiers_are_exported_too(whole: DefendedClassifier, name: str) -> None:
    build = MODELS[name]() if name in MODELS else TimmModel(name)
    torch.manual_seed(0)
    network = Classifier(build(channels=1, num_classes=2, size=32)).eval().requires_grad_(False)
    images = torch.rand(3, 1, 32, 32)
    bare = replace(whole, classifier=network, detector=None, purifier=GaussianBlur())
    fast = accelerated(bare, images[:1])
    assert fast.classifier is not network
    with torch.no_grad():
        assert (fast.classifier(images) - network(images)).abs().max() < TOLERANCE


def test_the_purifier_keeps_its_schedule(whole: DefendedClassifier, models: Exported) -> None:
    fast = on_onnx_runtime(whole, models.models)
    assert isinstance(whole.purifier, DiffusionPurifier)
    assert isinstance(fast.purifier, DiffusionPurifier)
    t = torch.tensor([1, 25, whole.purifier.network.t_max])
    assert fast.purifier.network.t_max == whole.purifier.network.t_max
    assert torch.equal(fast.purifier.network.signal(t), whole.purifier.network.signal(t))
    assert torch.equal(fast.purifier.network.spread(t), whole.purifier.network.spread(t))
