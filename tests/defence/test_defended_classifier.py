"""The full defence as one object: what is served is what is attacked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedplatform.defence import (
    DefendedClassifier,
    DepthMap,
    Detector,
    DiffusionPurifier,
    Examination,
    FreshNoise,
    Fusion,
    Gate,
    GaussianBlur,
    KeyedNoise,
    OneShot,
)
from fedplatform.defence.detector import PARTS
from fedplatform.learning.models import Classifier, SmallCnn
from fedplatform.learning.models.masked_autoencoder import MaskedAutoencoder
from fedplatform.learning.models.noise_predictor import NoisePredictor
from fedplatform.learning.models.symmetries import SYMMETRIES, seen_from

SIZE = 16


def images(count: int, seed: int = 0) -> torch.Tensor:
    smooth = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(smooth, size=SIZE, mode="bilinear")


@pytest.fixture(scope="module")
def defended() -> DefendedClassifier:
    torch.manual_seed(0)
    classifier = Classifier(SmallCnn(width=4)(channels=1, num_classes=2, size=SIZE)).eval()
    network = NoisePredictor(width=16, fold=2, t_max=100)(channels=1, num_classes=2, size=SIZE).eval()
    autoencoder = MaskedAutoencoder()(channels=1, num_classes=2, size=SIZE).eval()
    sensor = Classifier(SmallCnn(width=4)(channels=1, num_classes=2, size=SIZE)).eval()
    for part in (classifier, network, autoencoder, sensor):
        part.requires_grad_(False)
    plain = DefendedClassifier(
        classifier,
        DiffusionPurifier(network, OneShot()),
        Gate(threshold=0.0, usual_depth=0, flagged_depth=DepthMap(20, 60, 0.0, 2.0)),
        KeyedNoise(b"secret"),
        detector=Detector(autoencoder, sensor, Fusion(dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 1.0))),
        probe_depth=20,
        copies=(0, 0, 0),
    )
    passage = plain.passage(images(16))
    detector = Detector(autoencoder, sensor, Fusion.fit(passage.parts))
    fitted = replace(plain, detector=detector)
    scores = fitted.passage(images(16)).scores.sort().values
    return replace(fitted, gate=replace(plain.gate, threshold=float(scores[7:9].mean())))


def test_a_scan_alone_and_in_a_batch_of_16_gets_the_same_answer(defended: DefendedClassifier) -> None:
    batch = images(16)
    together = defended.diagnose(batch)
    for number in range(16):
        (alone,) = defended.diagnose(batch[number : number + 1])
        assert alone.label == together[number].label
        assert alone.flagged == together[number].flagged
        assert alone.depth == together[number].depth
        assert alone.votes == together[number].votes
        assert alone.probabilities == pytest.approx(together[number].probabilities, abs=1e-5)
        assert alone.anomaly_score == pytest.approx(together[number].anomaly_score, abs=1e-3)


def test_only_flagged_scans_are_purified(defended: DefendedClassifier) -> None:
    batch = images(16)
    with torch.no_grad():
        passage = defended.passage(batch)
        bare = defended.classifier(batch)
    assert 0 < passage.flagged.sum() < 16
    still = ~passage.flagged
    assert torch.equal(passage.purified[still], batch[still])
    torch.testing.assert_close(passage.logits[still].softmax(dim=1), bare[still].softmax(dim=1))
    assert (passage.depth[still] == 0).all()
    assert (passage.votes[still] == -1).all()
    assert (passage.depth[passage.flagged] >= 20).all()
    assert (passage.votes[passage.flagged] >= 0).all()
    assert (passage.purified[passage.flagged] != batch[passage.flagged]).flatten(1).any(dim=1).all()


class NoNoise:
    """Stops whoever asks for noise."""

    def draw(self, images: torch.Tensor, copies: int) -> torch.Tensor:
        raise AssertionError(f"{len(images)} scans asked for noise of {copies} copies")


def test_a_scan_that_is_not_flagged_costs_no_noise_and_no_purification(defended: DefendedClassifier) -> None:
    assert defended.detector is not None
    alone = replace(defended.detector.fusion, silent=("reconstruction", "disagreement"))
    sensed = replace(defended, detector=replace(defended.detector, fusion=alone))
    scores = sensed.examine(images(16)).scores
    quiet, loud = (replace(sensed, gate=replace(sensed.gate, threshold=float(to))) for to in (scores.max(), -1e9))
    with torch.no_grad():
        passage = quiet.passage(images(16), noise=NoNoise())
        torch.testing.assert_close(passage.logits, quiet.classifier(images(16)).log_softmax(dim=1))
        with pytest.raises(AssertionError, match="16 scans asked for noise of 3 copies"):
            loud.passage(images(16), noise=NoNoise())


def test_what_is_diagnosed_is_what_the_attacked_logits_say(defended: DefendedClassifier) -> None:
    batch = images(16).requires_grad_()
    logits = defended.logits(batch)
    diagnoses = defended.diagnose(batch.detach())
    for row, diagnosis in zip(logits.detach().softmax(dim=1), diagnoses, strict=True):
        assert diagnosis.probabilities == pytest.approx(row.tolist(), abs=1e-5)


def test_the_gradient_passes_through_the_gate_and_both_branches(defended: DefendedClassifier) -> None:
    batch = images(16).requires_grad_()
    logits = defended.logits(batch)
    (slope,) = torch.autograd.grad(logits.logsumexp(dim=1).sum() + logits[:, 0].sum(), batch)
    assert (slope.flatten(1).abs().amax(dim=1) > 0).all()
    with torch.no_grad():
        flagged = defended.passage(batch).flagged
    outside = int((~flagged).nonzero()[0])
    bare = batch.detach()[outside : outside + 1].requires_grad_()
    (alone,) = torch.autograd.grad(defended.classifier(bare)[:, 0].sum(), bare)
    gated = batch.detach()[outside : outside + 1].requires_grad_()
    (through,) = torch.autograd.grad(defended.logits(gated)[:, 0].sum(), gated)
    assert not torch.allclose(alone, through), "the step of the gate has a slope that an attacker may climb"


def test_another_counter_of_the_noise_gives_other_copies_and_the_same_key_the_same(
    defended: DefendedClassifier,
) -> None:
    gate = replace(defended.gate, threshold=-1e9)
    everything = replace(defended, gate=gate)
    batch = images(2)
    again = everything.diagnose(batch)
    assert again == everything.diagnose(batch)
    other = everything.diagnose(batch, noise=KeyedNoise(b"secret", counter=1))
    assert again[0].probabilities != other[0].probabilities


def test_a_certificate_holds_for_scans_within_its_radius(defended: DefendedClassifier) -> None:
    (scan,) = images(1, seed=3)
    found = defended.certify(scan, sigma=0.1, samples=100, generator=torch.Generator().manual_seed(0))
    assert found.label is not None
    assert 0 < found.radius < 0.3
    direction = torch.randn(scan.shape, generator=torch.Generator().manual_seed(1))
    moved = scan + 0.9 * found.radius * direction / direction.norm()
    there = defended.certify(moved, sigma=0.1, samples=100, generator=torch.Generator().manual_seed(2))
    assert there.label == found.label


def test_a_certificate_needs_a_purifier_that_knows_the_noise(defended: DefendedClassifier) -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="diffusion purifier"):
        replace(defended, purifier=GaussianBlur()).certify(images(1)[0], sigma=0.1, samples=10, generator=generator)
    with pytest.raises(ValueError, match="sigma"):
        defended.certify(images(1)[0], sigma=0.9, samples=10, generator=generator)


def test_a_usual_depth_purifies_every_scan_and_all_copies_vote(defended: DefendedClassifier) -> None:
    light = replace(defended, gate=replace(defended.gate, usual_depth=10))
    passage = light.passage(images(16))
    assert passage.flagged.any()
    assert not passage.flagged.all()
    assert (passage.votes >= 0).all()
    assert (passage.depth[~passage.flagged] == 10).all()


def test_a_doubtful_answer_is_referred(defended: DefendedClassifier) -> None:
    sure = replace(defended, least_confidence=0.0).diagnose(images(4))
    shy = replace(defended, least_confidence=1.1).diagnose(images(4))
    assert not any(diagnosis.referred for diagnosis in sure)
    assert all(diagnosis.referred for diagnosis in shy)
    assert [diagnosis.label for diagnosis in sure] == [diagnosis.label for diagnosis in shy]


def test_a_weak_defence_is_the_same_object_with_another_purifier(defended: DefendedClassifier) -> None:
    blurred = DefendedClassifier(
        defended.classifier,
        GaussianBlur(1.0),
        Gate(threshold=-1.0, usual_depth=0, flagged_depth=DepthMap(1, 1, 0.0, 0.0)),
        FreshNoise(torch.Generator().manual_seed(0)),
    )
    batch = images(3)
    none = torch.zeros(3, dtype=torch.int64)
    expected = defended.classifier(GaussianBlur(1.0)(batch, none, batch)).log_softmax(dim=1)
    torch.testing.assert_close(blurred.logits(batch), expected)


def test_examined_here_and_treated_elsewhere_a_scan_gets_the_same_answer(defended: DefendedClassifier) -> None:
    scans = images(16)
    whole = defended.passage(scans)
    examination = defended.examine(scans)
    assert whole.flagged.any()
    assert not whole.flagged.all()
    halves = defended.treat(scans, examination)
    assert torch.equal(halves.logits, whole.logits)
    assert torch.equal(halves.votes, whole.votes)
    assert defended.conclude(halves) == defended.diagnose(scans)


def test_an_examination_is_cut_apart_and_put_together_without_loss(defended: DefendedClassifier) -> None:
    whole = defended.examine(images(16))
    parts = [whole[:5], whole[torch.arange(5, 16)]]
    again = Examination.cat(parts)
    for name in ("answers", "scores", "flagged", "depth"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    assert {name: values.tolist() for name, values in again.parts.items()} == {
        name: values.tolist() for name, values in whole.parts.items()
    }
    assert parts[0].answers.untyped_storage().nbytes() < whole.answers.untyped_storage().nbytes(), "no scan goes along"


def test_a_scan_that_is_not_purified_gets_one_answer_from_whatever_side(defended: DefendedClassifier) -> None:
    unpurified = replace(
        defended,
        gate=Gate(threshold=float("inf"), usual_depth=0, flagged_depth=DepthMap(1, 1, 0.0, 0.0)),
        symmetries=SYMMETRIES,
    )
    assert unpurified.gate.closed
    assert not defended.gate.closed
    torch.testing.assert_close(unpurified.logits(images(4).flip(3)), unpurified.logits(images(4)))
    assert not torch.allclose(defended.classifier(images(4).flip(3)), defended.classifier(images(4)))


def test_the_copies_of_a_purified_scan_are_seen_from_one_side_each(defended: DefendedClassifier) -> None:
    everything = replace(defended.gate, threshold=-float("inf"), flagged_depth=DepthMap(30, 30, 0.0, 1.0))
    turned = replace(defended, gate=everything, copies=(0, 6, 3))
    scans = images(5)
    noise = turned.noise.draw(scans, 3)
    depth = torch.full((5,), 30)
    answers = [
        turned.classifier(seen_from(turned.purifier(scans, depth, noise[:, copy]), side)).softmax(dim=1)
        for copy, side in enumerate((0, 6, 3))
    ]
    torch.testing.assert_close(turned.logits(scans).softmax(dim=1), sum(answers) / 3)
