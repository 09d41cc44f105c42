"""What a classifier is shown while it is tuned on purified scans."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

from fedplatform.defence.purified_objective import Purified
from fedplatform.learning.training import Batch


@dataclass
class Watched:
    """A purifier that halves a scan's contrast, and remembers what it was given."""

    depths: list[torch.Tensor] = field(default_factory=list)
    scans: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, images: torch.Tensor, depth: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        self.depths.append(depth)
        self.scans.append(images.detach())
        return images / 2 + noise * 0


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = 0.2 + 0.6 * torch.rand(64, 1, 4, 4, generator=generator)
    return images, torch.randint(2, (64,), generator=generator)


def loss_of(objective: Purified, model: nn.Module) -> torch.Tensor:
    images, labels = batch()
    return objective.loss(model, Batch(images, labels, torch.Generator().manual_seed(2), progress=0.0))


def test_every_scan_is_purified_at_a_depth_of_its_own_within_the_range() -> None:
    watched, model = Watched(), network()
    loss = loss_of(Purified(watched, least_depth=30, most_depth=50), model)
    images, labels = batch()
    (depths,) = watched.depths
    assert depths.min() >= 30
    assert depths.max() <= 50
    assert len(depths.unique()) > 10
    torch.testing.assert_close(loss, functional.cross_entropy(model(images / 2), labels))


def test_with_an_epsilon_the_attack_climbs_through_the_purifier_and_stays_within_it() -> None:
    watched, model = Watched(), network()
    attacked = loss_of(Purified(watched, least_depth=30, most_depth=50, epsilon=0.05), model)
    assert attacked > loss_of(Purified(Watched(), least_depth=30, most_depth=50), model) + 0.005
    images, _ = batch()
    moved = (watched.scans[-1] - images).abs()
    assert 0.01 < moved.mean() <= moved.max() <= 0.05 + 1e-6
    assert all(torch.equal(depth, watched.depths[0]) for depth in watched.depths)
