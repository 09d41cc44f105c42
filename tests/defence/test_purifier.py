"""Noise predictor, samplers and noise against diffusers and slow definitions, and the weak old defences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from fedplatform.core.seeding import torch_generator
from fedplatform.data.lesions import Lesions
from fedplatform.defence import (
    SAMPLERS,
    BitDepth,
    Ddim,
    Ddpm,
    DiffusionPurifier,
    DpmSolver,
    FreshNoise,
    GaussianBlur,
    Jpeg,
    KeyedNoise,
    Noise,
    OneShot,
    Purifier,
    Sampler,
)
from fedplatform.defence.noise import further_noise
from fedplatform.learning.models.noise_predictor import NoisePredictor, NoiseUnet

SMALL = NoisePredictor(width=16, halvings=1)
WEAK = (GaussianBlur(), Jpeg(), BitDepth())
FEW = [OneShot(), Ddim(), DpmSolver(), Ddpm()]


def network(setting: NoisePredictor = SMALL, *, channels: int = 1) -> NoiseUnet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return setting(channels=channels, num_classes=2, size=16).eval()


def random_images(n: int = 3, *, channels: int = 1, size: int = 16) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=torch_generator(0, "images"))


def normal(images: torch.Tensor, name: str = "noise") -> torch.Tensor:
    return torch.randn(images.shape, generator=torch_generator(0, name))


def psnr(images: torch.Tensor, truth: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]."""
    return -10 * math.log10((images - truth).square().mean().item())


def train(net: NoiseUnet, loss_of, *, steps: int) -> None:
    """Some steps of Adam on what ``loss_of(generator)`` gives."""
    generator = torch_generator(0, "training")
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(steps):
        loss = loss_of(generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def scans() -> torch.Tensor:
    lesions = Lesions(hospitals=2, patients_per_hospital=40, slices_per_patient=1)
    return torch.from_numpy(np.concatenate(list(lesions.images(size=32, channels=1)))).float() / 255


@pytest.fixture(scope="module")
def trained(scans: torch.Tensor) -> NoiseUnet:
    """A small noise predictor after some seconds on the scans of 60 patients."""
    net = network()
    train(net, lambda g: net.loss(scans[torch.randint(60, (16,), generator=g)], g), steps=100)
    return net


# ------------------------------------------------------------------------------------------------ the noise predictor


def test_a_scan_is_diffused_as_diffusers_does_it() -> None:
    net, images = network(), random_images()
    t = torch.tensor([1, 77, 200])
    theirs = DDPMScheduler(beta_schedule="linear").add_noise(2 * images - 1, normal(images), t - 1)
    torch.testing.assert_close(net.diffuse(images, t, normal(images)), theirs)


def test_taking_the_true_noise_off_gives_the_scan_back() -> None:
    class Oracle(NoiseUnet):
        def forward(self, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return normal(noisy)

    images, t = random_images(), torch.tensor([1, 77, 200])
    oracle = Oracle(SMALL, channels=1)
    x = oracle.denoise(oracle.diffuse(images, t, normal(images)), t)
    torch.testing.assert_close((x + 1) / 2, images, atol=1e-5, rtol=0)
    depth = torch.tensor([3, 77, 200])
    for sampler in (OneShot(), Ddim(steps=4)):
        cleaned = DiffusionPurifier(oracle, sampler)(images, depth, normal(images))
        torch.testing.assert_close(cleaned, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fold", [1, 2, 4])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 28), (1, 64), (3, 17)])
def test_any_number_of_channels_and_any_size_will_do(channels: int, size: int, fold: int) -> None:
    net = network(NoisePredictor(width=16, halvings=2, fold=fold), channels=channels)
    images = random_images(2, channels=channels, size=size)
    assert net(images, torch.tensor([1, 200])).shape == images.shape


def test_the_depth_tells_the_network_how_much_noise_there_is() -> None:
    net, images = network(), random_images(1)
    assert not torch.allclose(net(images, torch.tensor([1])), net(images, torch.tensor([200])), atol=1e-4)


@pytest.mark.parametrize("setting", [{"width": 12}, {"t_max": 0}, {"t_max": 1001}])
def test_a_noise_predictor_that_cannot_be_is_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="noise_predictor needs"):
        network(NoisePredictor(**setting))


def test_it_is_trained_on_every_depth_from_one_to_t_max_and_on_no_other() -> None:
    met: set[int] = set()

    class Listening(NoiseUnet):
        def forward(self, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            met.update(t.tolist())
            return noisy

    Listening(NoisePredictor(width=16, t_max=5), channels=1).loss(random_images(200), torch_generator(0))
    assert met == {1, 2, 3, 4, 5}


def test_the_bridge_weighs_the_error_of_the_clean_scan_by_a_signal_to_noise_ratio_of_at_most_five() -> None:
    net, clean = network(), random_images(8)
    attacked = (clean + 8 / 255 * normal(clean, "attack").sign()).clamp(0, 1)
    generator = torch_generator(3)
    t = torch.randint(1, net.t_max + 1, (8,), generator=generator)
    noisy = net.diffuse(attacked, t, torch.randn(clean.shape, generator=generator))
    ratio = (net.abar[t] / (1 - net.abar[t])).clamp(max=5)
    assert (ratio < 5).any()
    assert (ratio == 5).any()
    errors = (net.denoise(noisy, t) - (2 * clean - 1)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(net.bridge_loss(clean, attacked, torch_generator(3)), (ratio * errors).mean())


def test_training_on_the_bridge_takes_off_a_perturbation_that_plain_training_leaves_on(scans: torch.Tensor) -> None:
    board = (torch.arange(32).view(-1, 1) + torch.arange(32)) % 2 * 2.0 - 1
    attacked = (scans + 16 / 255 * board).clamp(0, 1)
    left = {}
    for name in ("plain", "bridge"):
        net = network()

        def loss(generator: torch.Generator, net: NoiseUnet = net, name: str = name) -> torch.Tensor:
            batch = torch.randint(60, (16,), generator=generator)
            if name == "plain":
                return net.loss(scans[batch], generator)
            return net.bridge_loss(scans[batch], attacked[batch], generator)

        train(net, loss, steps=60)
        with torch.no_grad():
            depth = torch.full((20,), 30)
            cleaned = DiffusionPurifier(net, OneShot())(attacked[60:], depth, normal(scans[60:]))
        left[name] = ((cleaned - scans[60:]) * board).mean().item()
    assert left["bridge"] < 0.7 * left["plain"]


# ---------------------------------------------------------------------------------------------------------- samplers


@pytest.mark.parametrize(("depth", "steps"), [(100, 5), (200, 2), (40, 40), (50, 1)])
def test_ddim_takes_the_steps_of_diffusers(depth: int, steps: int) -> None:
    net, images = network(), random_images()
    t = torch.full((3,), depth)
    noisy = net.diffuse(images, t, normal(images))
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    stride = depth // steps
    scheduler.set_timesteps(1000 // stride)
    theirs = noisy
    with torch.no_grad():
        for left in range(steps, 0, -1):
            now = left * stride
            theirs = scheduler.step(net(theirs, torch.full((3,), now)), now - 1, theirs).prev_sample
        ours = Ddim(steps)(net, noisy, t, normal(images))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers, of NumPy 2
@pytest.mark.parametrize(("depth", "steps"), [(100, 5), (200, 2), (150, 3), (20, 10), (50, 1)])
def test_dpm_solver_takes_the_steps_of_diffusers(depth: int, steps: int) -> None:
    net, images = network(), random_images()
    t = torch.full((3,), depth)
    noisy = net.diffuse(images, t, normal(images))
    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear")
    scheduler.set_timesteps(timesteps=[left * (depth // steps) - 1 for left in range(steps, 0, -1)])
    theirs = noisy
    with torch.no_grad():
        for now in scheduler.timesteps:
            theirs = scheduler.step(net(theirs, (now + 1).expand(3)), now, theirs).prev_sample
        ours = DpmSolver(steps)(net, noisy, t, normal(images))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_ddpm_takes_the_steps_of_diffusers_under_the_same_noise() -> None:
    net, images = network(), random_images(1)
    depth, noise = 12, normal(images)
    noisy = net.diffuse(images, torch.tensor([depth]), noise)
    scheduler, (stream,) = DDPMScheduler(beta_schedule="linear", clip_sample=False), further_noise(noise)
    theirs = noisy
    with torch.no_grad():
        for now in range(depth, 0, -1):
            drawn = torch.from_numpy(stream.standard_normal(images.shape, np.float32))
            predicted = net(theirs, torch.tensor([now]))
            their_noise = torch_generator(now)
            step = scheduler.step(predicted, now - 1, theirs, generator=their_noise).prev_sample
            if now > 1:  # diffusers draws noise of its own: exchange it for ours
                spread = scheduler._get_variance(now - 1).sqrt()
                step = step + spread * (drawn - torch.randn(images.shape, generator=torch_generator(now)))
            theirs = step
        ours = Ddpm()(net, noisy, torch.tensor([depth]), noise)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", [Ddim(1), DpmSolver(1)])
def test_one_step_is_the_one_shot(sampler: Sampler) -> None:
    net, noisy, depth = network(), normal(random_images()), torch.tensor([1, 50, 200])
    torch.testing.assert_close(sampler(net, noisy, depth, noisy), OneShot()(net, noisy, depth, noisy))


@pytest.mark.parametrize("kind", [Ddim, DpmSolver])
def test_a_sampler_without_a_step_is_refused(kind: type) -> None:
    with pytest.raises(ValueError, match="steps >= 1"):
        kind(steps=0)


# ---------------------------------------------------------------------------------------------------------- purifier


@pytest.mark.parametrize("sampler", FEW, ids=lambda sampler: type(sampler).__name__)
@settings(max_examples=3, deadline=None)
@given(depths=st.lists(st.integers(0, 12), min_size=4, max_size=4))
def test_a_scan_alone_is_cleaned_as_it_is_among_others_of_other_depths(sampler: Sampler, depths: list[int]) -> None:
    purifier, images = DiffusionPurifier(network(), sampler), random_images(4)
    depth, noise = torch.tensor(depths), normal(images)
    with torch.no_grad():
        together = purifier(images, depth, noise)
        alone = torch.cat([purifier(images[[i]], depth[[i]], noise[[i]]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert ((together >= 0) & (together <= 1)).all()
    assert torch.isfinite(together).all()


@pytest.mark.parametrize("sampler", FEW, ids=lambda sampler: type(sampler).__name__)
def test_depth_zero_leaves_a_scan_as_it_is(sampler: Sampler) -> None:
    purifier, images = DiffusionPurifier(network(), sampler), random_images(3)
    cleaned = purifier(images, torch.tensor([0, 5, 0]), normal(images))
    assert torch.equal(cleaned[[0, 2]], images[[0, 2]])
    assert not torch.allclose(cleaned[1], images[1], atol=1e-3)
    assert torch.equal(purifier(images, torch.zeros(3, dtype=torch.int64), normal(images)), images)


@pytest.mark.parametrize("depth", [-1, 201])
def test_a_depth_that_it_has_not_learned_is_refused(depth: int) -> None:
    images = random_images(1)
    with pytest.raises(ValueError, match="depths 0 to 200"):
        DiffusionPurifier(network(), OneShot())(images, torch.tensor([depth]), normal(images))


@pytest.mark.parametrize("sampler", FEW, ids=lambda sampler: type(sampler).__name__)
def test_the_gradient_through_the_purifier_is_the_true_one(sampler: Sampler) -> None:
    net = network().double()
    purifier = DiffusionPurifier(net, sampler)
    images = (random_images(2).double() / 2 + 0.25).requires_grad_()  # away from the clamp
    depth, noise = torch.tensor([3, 6]), normal(images)
    (slope,) = torch.autograd.grad(purifier(images, depth, noise).square().sum(), images)
    assert (slope != 0).double().mean() > 0.99
    step = 1e-5 * normal(images, "step")
    with torch.no_grad():
        up, down = (purifier(images + sign * step, depth, noise).square().sum() for sign in (1, -1))
    torch.testing.assert_close(up - down, 2 * (slope * step).sum(), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("sampler", [OneShot(), Ddim(), DpmSolver()], ids=lambda sampler: type(sampler).__name__)
def test_a_trained_purifier_takes_off_most_of_the_noise(
    sampler: Sampler, trained: NoiseUnet, scans: torch.Tensor
) -> None:
    clean = scans[60:]
    for depth in (50, 150):
        t = torch.full((20,), depth)
        noisy = (trained.diffuse(clean, t, normal(clean)) / trained.signal(t) + 1) / 2
        with torch.no_grad():
            cleaned = DiffusionPurifier(trained, sampler)(clean, t, normal(clean))
        assert psnr(cleaned, clean) > psnr(noisy.clamp(0, 1), clean) + 2


def test_the_ancestral_steps_end_near_the_scan_and_at_another_place_for_other_noise(
    trained: NoiseUnet, scans: torch.Tensor
) -> None:
    clean, depth = scans[60:64], torch.full((4,), 30)
    with torch.no_grad():
        one, other = (DiffusionPurifier(trained, Ddpm())(clean, depth, normal(clean, name)) for name in ("a", "b"))
    assert psnr(one, clean) > 20
    assert not torch.allclose(one, other, atol=1e-2)


def test_every_sampler_has_a_name_and_is_a_value() -> None:
    for kind in SAMPLERS.values():
        assert isinstance(kind(), Sampler)
        assert kind() == kind()
    assert {type(sampler) for sampler in FEW} == set(SAMPLERS.values())


# ------------------------------------------------------------------------------------------------------------- noise


def test_a_scan_alone_gets_the_noise_it_gets_in_a_batch() -> None:
    images, noise = random_images(5, channels=3), KeyedNoise(b"secret")
    assert isinstance(noise, Noise)
    together = noise.draw(images, 4)
    assert together.shape == (5, 4, 3, 16, 16)
    assert torch.equal(together, torch.cat([noise.draw(image, 4) for image in images.split(1)]))
    assert torch.equal(together[:, :2], noise.draw(images, 2))


def test_another_key_or_counter_or_scan_or_copy_gives_noise_that_has_nothing_to_do_with_it() -> None:
    images = random_images(2, size=64)
    draws = [
        *KeyedNoise(b"secret").draw(images, 2).flatten(0, 1),
        KeyedNoise(b"Secret").draw(images, 1)[0, 0],
        KeyedNoise(b"secret", counter=1).draw(images, 1)[0, 0],
        KeyedNoise(b"secret").draw(images.view(2, 1, 32, 128), 1)[0, 0].view(1, 64, 64),
    ]
    correlation = np.corrcoef(torch.stack(draws).flatten(1).numpy())
    assert np.abs(correlation - np.eye(len(draws))).max() < 5 / 64


def test_the_noise_is_standard_normal() -> None:
    for noise in (KeyedNoise(b"secret"), FreshNoise(torch_generator(0))):
        drawn = noise.draw(random_images(4, size=32), 8).flatten().double()
        assert abs(drawn.mean()) < 0.03
        assert abs(drawn.var() - 1) < 0.05
        assert abs((drawn**4).mean() - 3) < 0.3


@pytest.mark.parametrize("level", [0, 1, 30_000, 65_535])
def test_two_scans_that_are_the_same_in_sixteen_bits_get_the_same_noise(level: int) -> None:
    def noise_of(pixel: float) -> torch.Tensor:
        return KeyedNoise(b"secret").draw(torch.full((1, 1, 4, 4), pixel), 1)

    assert torch.equal(noise_of(level / 65_535), noise_of((level + 0.3) / 65_535))
    assert not torch.equal(noise_of(30_001 / 65_535), noise_of((level + 0.3) / 65_535))


def test_the_key_is_not_shown_and_must_not_be_empty() -> None:
    assert "secret" not in repr(KeyedNoise(b"secret"))
    with pytest.raises(ValueError, match="needs a key"):
        KeyedNoise(b"")


def test_keyed_noise_does_not_repeat_itself_where_a_generator_of_pytorch_would() -> None:
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 5 + 2**32)]
    first, second = (torch.randn(4, generator=generator) for generator in seeds)
    assert torch.equal(first, second)  # the reason why the streams are NumPy's: once this fails, they need not be


def test_fresh_noise_is_new_at_every_call_and_follows_from_its_generator() -> None:
    images, fresh = random_images(2), FreshNoise(torch_generator(0))
    first, second = fresh.draw(images, 3), fresh.draw(images, 3)
    assert first.shape == (2, 3, 1, 16, 16)
    assert not torch.isclose(first, second).any()
    assert torch.equal(first, FreshNoise(torch_generator(0)).draw(images, 3))


# ------------------------------------------------------------------------------------------------ weak old defences


@pytest.mark.parametrize("weak", WEAK, ids=lambda weak: type(weak).__name__)
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 16)])
def test_a_weak_defence_is_a_purifier_that_knows_no_depth_no_noise_and_no_other_scan(
    weak: Purifier, channels: int, size: int
) -> None:
    images = random_images(3, channels=channels, size=size)
    noise, zero, deep = normal(images), torch.zeros(3, dtype=torch.int64), torch.full((3,), 9)
    assert isinstance(weak, Purifier)
    cleaned = weak(images, zero, noise)
    assert cleaned.shape == images.shape
    assert torch.equal(cleaned, weak(images, deep, -noise))
    alone = torch.cat([weak(image, zero[:1], noise[:1]) for image in images.split(1)])
    torch.testing.assert_close(cleaned, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.2])
def test_the_blur_is_the_gaussian_filter_of_scipy(sigma: float) -> None:
    images = random_images(2, channels=3)
    theirs = gaussian_filter(images.numpy(), sigma, mode="nearest", truncate=3, axes=(2, 3))
    ours = GaussianBlur(sigma)(images, torch.zeros(2), images)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-5, rtol=0)


def test_a_jpeg_keeps_a_smooth_scan_and_its_colours_and_loses_more_at_lower_quality() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32) * torch.tensor([1.0, 0.6, 0.2]).view(1, 3, 1, 1)
    none = torch.zeros(1)
    torch.testing.assert_close(Jpeg(95)(ramp, none, ramp), ramp, atol=0.03, rtol=0)
    images = random_images(1, size=32)
    quality = [psnr(Jpeg(quality)(images, none, images), images) for quality in (10, 50, 90)]
    assert quality == sorted(quality)
    assert quality[0] < quality[2] - 5


@given(st.integers(1, 8))
def test_bit_depth_leaves_that_many_levels_and_moves_no_pixel_by_more_than_half_of_one(bits: int) -> None:
    images = torch.linspace(0, 1, 1024).view(1, 1, 32, 32)
    rounded = BitDepth(bits)(images, torch.zeros(1), images)
    assert len(rounded.unique()) == 2**bits
    assert (rounded - images).abs().max() <= 0.5 / (2**bits - 1) + 1e-6


@pytest.mark.parametrize("weak", [Jpeg(), BitDepth()], ids=lambda weak: type(weak).__name__)
def test_the_gradient_goes_through_a_rounding_as_if_there_were_none(weak: Purifier) -> None:
    images, upstream = random_images().requires_grad_(), normal(random_images())
    (weak(images, torch.zeros(3), images) * upstream).sum().backward()
    assert images.grad is not None
    assert torch.equal(images.grad, upstream)


@pytest.mark.parametrize(("weak", "value"), [(GaussianBlur, 0), (Jpeg, 0), (Jpeg, 96), (BitDepth, 0), (BitDepth, 17)])
def test_a_weak_defence_that_cannot_be_is_refused(weak: type, value: int) -> None:
    with pytest.raises(ValueError, match=weak.__name__):
        weak(value)
