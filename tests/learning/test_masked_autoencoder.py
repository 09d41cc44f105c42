"""The masked autoencoder against slow definitions, and what it is for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Laplace

from fedplatform.core.seeding import torch_generator
from fedplatform.data.lesions import Lesions
from fedplatform.learning.models.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderVit, draw_masks

SMALL = MaskedAutoencoder(width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1)


def network(setting: MaskedAutoencoder = SMALL, *, channels: int = 1, size: int = 16) -> MaskedAutoencoderVit:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return setting(channels=channels, num_classes=2, size=size)


def random_images(n: int = 3, *, channels: int = 1, size: int = 16) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=torch_generator(0, "images"))


def on_pixels(mask: torch.Tensor, net: MaskedAutoencoderVit) -> torch.Tensor:
    """A mask of patches (patches,) as one of pixels (size, size)."""
    grid = mask.view(net.grid, net.grid)
    return grid.repeat_interleave(net.patch, dim=0).repeat_interleave(net.patch, dim=1)


@pytest.fixture(scope="module")
def scans() -> torch.Tensor:
    lesions = Lesions(hospitals=2, patients_per_hospital=40, slices_per_patient=1)
    return torch.from_numpy(np.concatenate(list(lesions.images(size=32, channels=1)))).float() / 255


@pytest.fixture(scope="module")
def trained(scans: torch.Tensor) -> tuple[MaskedAutoencoderVit, list[float]]:
    """A small autoencoder after some seconds on the scans of 60 patients, and its loss on the way."""
    net, generator = (
        network(MaskedAutoencoder(width=32, depth=2, decoder_width=32, patch=4), size=32),
        torch_generator(0),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = net.loss(scans[torch.randint(60, (16,), generator=generator)], generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return net, losses


@given(st.integers(1, 6), st.integers(0, 2**31))
def test_of_every_two_by_two_patches_each_mask_shows_one_and_no_two_masks_the_same(half: int, seed: int) -> None:
    masks = draw_masks(2, 2 * half, torch.Generator().manual_seed(seed))
    assert masks.shape == (2, 4, 4 * half**2)
    assert (masks.sum(dim=1) == 1).all()
    cells = masks.view(2, 4, half, 2, half, 2).sum(dim=(3, 5))
    assert (cells == 1).all()


def test_the_complementary_masks_are_the_same_in_every_hospital_and_show_each_patch_once() -> None:
    masks = network().complementary_masks()
    assert torch.equal(masks, network().complementary_masks())
    assert (masks.sum(dim=0) == 1).all()
    assert (masks.sum(dim=1) == masks.shape[1] // 4).all()


@pytest.mark.parametrize(("channels", "size", "grid"), [(1, 28, 4), (3, 28, 4), (1, 64, 8), (3, 32, 8), (1, 16, 8)])
def test_any_number_of_channels_and_any_even_size_will_do(channels: int, size: int, grid: int) -> None:
    net, images = network(channels=channels, size=size), random_images(2, channels=channels, size=size)
    mean, scale = net.reconstruct(images, net.complementary_masks()[:2])
    assert mean.shape == scale.shape == images.shape
    assert (scale >= 1 / 255).all()
    assert net.patch_errors(images).shape == (2, grid**2)


@pytest.mark.parametrize(("patch", "size"), [(0, 27), (3, 32), (32, 32)])
def test_a_size_that_no_patch_cuts_into_an_even_number_is_refused(patch: int, size: int) -> None:
    with pytest.raises(ValueError, match="even number of patches"):
        MaskedAutoencoder(patch=patch)(channels=1, num_classes=2, size=size)


def test_the_loss_is_the_laplace_likelihood_of_the_hidden_pixels_alone() -> None:
    net, images = network(channels=3), random_images(channels=3)
    masks = draw_masks(3, net.grid, torch_generator(7))[:, 0]
    mean, scale = net.reconstruct(images, masks)
    hidden = ~torch.stack([on_pixels(mask, net) for mask in masks])
    surprise = -Laplace(mean, scale).log_prob(images).mean(dim=1)
    torch.testing.assert_close(net.loss(images, torch_generator(7)), surprise[hidden].mean())


def test_a_reconstruction_is_made_from_the_visible_patches_alone() -> None:
    net, images = network(), random_images()
    visible = net.complementary_masks()[:3]
    shown = torch.stack([on_pixels(mask, net) for mask in visible]).unsqueeze(1)
    other = random_images(6)[3:]
    before = net.reconstruct(images, visible)
    for old, new in zip(before, net.reconstruct(images.where(shown, other), visible), strict=True):
        assert torch.equal(old, new)
    for old, new in zip(before, net.reconstruct(images.where(~shown, other), visible), strict=True):
        assert not torch.isclose(old, new).all()


def test_scans_that_show_different_numbers_of_patches_are_refused() -> None:
    net = network()
    visible = net.complementary_masks()[:3].clone()
    visible[0] = True
    with pytest.raises(ValueError, match="equally many"):
        net.reconstruct(random_images(), visible)


@pytest.mark.parametrize("channels", [1, 3])
def test_patch_errors_are_the_likelihood_ratios_of_one_grey_level_of_noise_over_four_reconstructions(
    channels: int,
) -> None:
    net, images = network(SMALL, channels=channels), random_images(channels=channels)
    total, times = torch.zeros(3, net.grid**2), torch.zeros(net.grid**2)
    for mask in net.complementary_masks():
        mean, scale = net.reconstruct(images, mask.expand(3, -1))
        wider = (scale**2 + 1 / 255**2) ** 0.5
        ratios = Laplace(mean, wider).log_prob(images) - Laplace(mean, scale).log_prob(images)
        for row, column in itertools.product(range(net.grid), repeat=2):
            number = row * net.grid + column
            if not mask[number]:
                here = (
                    slice(row * net.patch, (row + 1) * net.patch),
                    slice(column * net.patch, (column + 1) * net.patch),
                )
                total[:, number] += ratios[:, :, *here].sum(dim=(1, 2, 3))
                times[number] += 1
    assert (times == 3).all()
    torch.testing.assert_close(net.patch_errors(images), total / times, atol=1e-4, rtol=1e-4)


def test_a_scan_alone_gets_the_errors_it_gets_in_a_batch() -> None:
    net, images = network().eval(), random_images(16)
    alone = torch.cat([net.patch_errors(image) for image in images.split(1)])
    torch.testing.assert_close(net.patch_errors(images), alone, atol=1e-5, rtol=0)


def test_the_gradient_of_the_errors_in_the_pixels_is_the_true_one_and_misses_no_patch() -> None:
    net, images = network().double(), random_images(2).double().requires_grad_()
    (slope,) = torch.autograd.grad(net.patch_errors(images).sum(), images)
    assert (slope != 0).all()
    step = torch.randn(images.shape, generator=torch_generator(1)).double() * 1e-6
    with torch.no_grad():
        risen = net.patch_errors(images + step).sum() - net.patch_errors(images - step).sum()
    torch.testing.assert_close(risen, 2 * (slope * step).sum(), rtol=1e-4, atol=0)


def test_its_state_is_what_is_trained_and_nothing_else() -> None:
    net = network()
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}


def test_training_lowers_the_loss_on_scans_it_has_not_seen(
    scans: torch.Tensor, trained: tuple[MaskedAutoencoderVit, list[float]]
) -> None:
    net, losses = trained
    fresh = network(MaskedAutoencoder(width=32, depth=2, decoder_width=32, patch=4), size=32)
    with torch.no_grad():
        before, after = (each.loss(scans[60:], torch_generator(1)).item() for each in (fresh, net))
    assert after < before - 0.5
    assert np.mean(losses[-20:]) < losses[0] - 0.5


def test_what_it_did_not_expect_raises_the_error_of_the_patches_where_it_is(
    scans: torch.Tensor, trained: tuple[MaskedAutoencoderVit, list[float]]
) -> None:
    net, _ = trained
    clean = scans[60:]
    tampered = clean.clone()
    noise = torch.randn(clean.shape, generator=torch_generator(2)).sign() * 16 / 255
    tampered[:, :, :, 16:] = (clean + noise)[:, :, :, 16:].clamp(0, 1)
    with torch.no_grad():
        risen = (net.patch_errors(tampered) - net.patch_errors(clean)).view(-1, net.grid, net.grid)
    left, right = risen[:, :, : net.grid // 2].mean(dim=(1, 2)), risen[:, :, net.grid // 2 :].mean(dim=(1, 2))
    assert (right > 0).all()
    assert (right > left).all()
