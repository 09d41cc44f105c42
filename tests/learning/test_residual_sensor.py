"""The sensor's network looks at noise: what is smooth it does not see, a few grey levels it does."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score

from fedplatform.core.seeding import torch_generator
from fedplatform.defence.tampering_objective import Tampering
from fedplatform.learning.models import Classifier, ResidualSensor, SmallResNet
from fedplatform.learning.training.objectives import Batch, perturbed

SIZE = 32


def scans(count: int, seed: int) -> torch.Tensor:
    """Smooth pictures with a bright square in every second, under a little noise, in whole grey levels."""
    generator = torch_generator(seed, "scans")
    coarse = torch.rand(count, 1, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bicubic").clamp(0.1, 0.8)
    smooth[1::2, :, 10:16, 10:16] += 0.15
    return ((smooth + 0.01 * torch.randn(smooth.shape, generator=generator)) * 255).round().clamp(0, 255) / 255


@pytest.fixture(scope="module")
def victim() -> Classifier:
    torch.manual_seed(0)
    classifier = Classifier(SmallResNet(width=4)(channels=1, num_classes=2, size=SIZE))
    images, labels = scans(256, 1), torch.arange(256) % 2
    optimiser = torch.optim.Adam(classifier.parameters(), 1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(classifier(images), labels).backward()
        optimiser.step()
    return classifier.eval().requires_grad_(False)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 17), (1, 64)])
def test_it_takes_any_size_and_colours(channels: int, size: int) -> None:
    network = ResidualSensor(width=4)(channels=channels, num_classes=2, size=size)
    assert network(torch.rand(2, channels, size, size)).shape == (2, 2)


def test_a_picture_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="size >= 8, got 7"):
        ResidualSensor()(channels=1, num_classes=2, size=7)


def test_its_filters_see_nothing_in_a_flat_picture_and_only_first_differences_in_a_ramp() -> None:
    network = ResidualSensor(width=4)(channels=1, num_classes=2, size=16)
    filters = network.filters
    flat = torch.full((1, 1, 16, 16), 0.7)
    ramp = (torch.arange(16.0) / 16).expand(1, 1, 16, 16)
    assert torch.nn.functional.conv2d(flat, filters).abs().max() < 1e-6
    seen = torch.nn.functional.conv2d(ramp, filters)[0].abs().amax(dim=(1, 2))
    assert seen[:3].max() < 1e-6
    assert seen[3] > 0.05
    assert seen[4] < 1e-6


def test_it_learns_to_tell_scans_attacked_by_four_grey_levels_from_others_it_never_saw(victim: Classifier) -> None:
    torch.manual_seed(0)
    objective = Tampering(victim, steps=4)
    sensor = objective.network(ResidualSensor(width=8), channels=1, num_classes=2, size=SIZE)
    images, labels = scans(256, 2), torch.arange(256) % 2
    optimiser = torch.optim.AdamW(sensor.parameters(), 3e-3)
    generator = torch_generator(0)
    for _ in range(6):
        for batch in torch.randperm(256, generator=generator).split(32):
            optimiser.zero_grad()
            objective.loss(sensor, Batch(images[batch], labels[batch], generator, progress=0.5)).backward()
            optimiser.step()
    sensor.eval()
    fresh, answers = scans(64, 3), torch.arange(64) % 2
    attacked = perturbed(
        lambda moved: torch.nn.functional.cross_entropy(victim(moved), answers),
        fresh,
        epsilon=4 / 255,
        steps=10,
        generator=torch_generator(4),
    )
    saved = (attacked * 255).round() / 255  # as it would arrive in a file
    with torch.no_grad():
        scores = torch.cat([sensor(fresh), sensor(saved)]).diff(dim=1).flatten()
    assert roc_auc_score([0] * 64 + [1] * 64, scores.numpy()) > 0.9


def test_batch_normalisation_counts_scans_and_twins_once_and_no_attack_in_the_making(victim: Classifier) -> None:
    objective = Tampering(victim, steps=5)
    sensor = objective.network(ResidualSensor(width=4), channels=1, num_classes=2, size=SIZE).train()
    images, labels = scans(8, 5), torch.arange(8) % 2
    for number in range(6):  # among them attackers who know the sensor
        objective.loss(sensor, Batch(images, labels, torch_generator(number), progress=0.5))
        counted = {int(value) for name, value in sensor.state_dict().items() if name.endswith("num_batches_tracked")}
        assert counted == {number + 1}
        assert sensor.training
