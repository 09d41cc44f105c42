"""Large scans in tiles: whole again where nothing is changed, and no edge where a network looks."""

from __future__ import annotations

import pytest
import torch

from fedplatform.learning.models import NoisePredictor
from fedplatform.learning.models.tiles import Tiling


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (64, 64), (65, 40), (100, 70), (224, 300)])
def test_tiles_that_nothing_changed_blend_to_the_picture(height: int, width: int) -> None:
    tiling, pictures = Tiling(64, 16), torch.rand(2, 3, height, width, generator=generator())
    tiles = tiling.cut(pictures)
    assert all(max(tile.shape[-2:]) <= 64 for tile in tiles)
    torch.testing.assert_close(tiling.blend(tiles, height, width), pictures, rtol=0, atol=1e-6)


def test_where_tiles_meet_one_goes_over_into_the_other_without_a_step() -> None:
    tiling = Tiling(64, 16)
    left, right = tiling.cut(torch.zeros(1, 1, 64, 112))
    row = tiling.blend([left, right + 1], 64, 112)[0, 0, 0]
    assert row[:48].eq(0).all()
    assert row[64:].eq(1).all()
    assert row.diff().abs().max() < 1.5 / 16


def test_a_crop_is_at_the_same_place_in_both_pictures_and_at_another_in_each_scan() -> None:
    here = torch.rand(4, 1, 100, 100, generator=generator())
    one, two = Tiling(64, 16).crop((here, here + 1), generator())
    torch.testing.assert_close(one + 1, two)
    assert one.shape == (4, 1, 64, 64)
    assert (
        len({tuple(map(int, (scan == crop[0, 0, 0]).nonzero()[0])) for scan, crop in zip(here, one, strict=True)}) > 1
    )


def test_tiles_must_overlap_and_be_larger_than_their_overlap() -> None:
    with pytest.raises(ValueError, match="0 < overlap < side"):
        Tiling(32, 32)
    with pytest.raises(ValueError, match="tile of more than 32"):
        NoisePredictor(tile=32)(channels=1, num_classes=2, size=64)


@pytest.fixture(scope="module")
def networks():
    """The same weights, one of which looks at 64 pixels at a time and the other at whole scans of up to 128."""
    tiled, whole = (NoisePredictor(tile=tile)(channels=3, num_classes=2, size=96) for tile in (64, 128))
    tiled.load_state_dict(whole.state_dict())
    return tiled.eval(), whole.eval()


def test_scans_no_larger_than_a_tile_are_predicted_as_ever_bit_for_bit(networks) -> None:
    tiled, whole = networks
    noisy, t = torch.randn(2, 3, 64, 64, generator=generator()), torch.tensor([3, 90])
    with torch.no_grad():
        assert torch.equal(tiled(noisy, t), whole(noisy, t))
    assert tiled.loss(noisy, generator()).item() == whole.loss(noisy, generator()).item()


def test_a_gradient_goes_through_all_tiles_and_is_that_of_keeping_everything(networks) -> None:
    tiled, _ = networks
    noisy, t = torch.randn(1, 3, 96, 96, generator=generator()), torch.tensor([50])
    with torch.no_grad():
        plain = tiled.denoise(noisy, t)
    moved = noisy.clone().requires_grad_()
    cleaned = tiled.denoise(moved, t)
    torch.testing.assert_close(cleaned, plain)
    (slope,) = torch.autograd.grad(cleaned.square().sum(), moved)
    assert (slope.abs().sum(dim=1) > 0).float().mean() > 0.99
    step = 1e-2 * torch.randn(noisy.shape, generator=generator())
    with torch.no_grad():
        change = (tiled.denoise(noisy + step, t).square().sum() - tiled.denoise(noisy - step, t).square().sum()) / 2
    assert float((slope * step).sum()) == pytest.approx(float(change), rel=0.02)


def test_it_learns_from_tiles_of_large_scans(networks) -> None:
    tiled, _ = networks
    large = torch.rand(2, 3, 96, 96, generator=generator())
    seen = []
    hook = tiled.unet.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    tiled.loss(large, generator())
    tiled.bridge_loss(large, large, generator())
    hook.remove()
    assert seen == [(2, 12, 32, 32)] * 2
