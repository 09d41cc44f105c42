"""This project's purifier and detector, and the same networks as a plain DiffPure loop would run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch

from benchmarks.serving_engine import defence
from benchmarks.speed.contestant import Job
from fedplatform.defence import DefendedClassifier, DiffusionPurifier
from fedplatform.learning.models.noise_predictor import STEPS, NoiseUnet
from fedplatform.serving.onnx_engine import accelerated


@contextmanager
def defended(size: int, scans: int, *, is_served: bool) -> Iterator[tuple[DefendedClassifier, torch.Tensor]]:
    """The default networks, untrained, for what they cost does not hang on their weights; as served or in PyTorch."""
    made = _served(size) if is_served else _made(size)
    with torch.inference_mode():
        yield made, torch.rand(scans, 1, size, size)


def _made(size: int) -> DefendedClassifier:
    torch.manual_seed(0)
    return defence(size)


@cache
def _served(size: int) -> DefendedClassifier:
    """As the endpoint has it, on ONNX Runtime; exporting takes longer than everything that is measured here."""
    return accelerated(_made(size), torch.rand(1, 1, size, size))


@contextmanager
def one_shot(size: int, scans: int, depth: int, *, is_served: bool) -> Iterator[Callable[[], torch.Tensor]]:
    """The purifier of the defence: one evaluation a scan."""
    with defended(size, scans, is_served=is_served) as (made, images):
        noise, depths = torch.randn(images.shape), torch.full((scans,), depth)
        yield lambda: made.purifier(images, depths, noise)


@contextmanager
def diffpure(size: int, scans: int, depth: int) -> Iterator[Callable[[], torch.Tensor]]:
    """DiffPure's loop (Nie et al., 2022) as diffusers has it: every step from the depth down to 0."""
    from diffusers import DDPMScheduler

    with defended(size, scans, is_served=False) as (made, images):
        assert isinstance(made.purifier, DiffusionPurifier)
        network: NoiseUnet = made.purifier.network
        scheduler = DDPMScheduler(num_train_timesteps=STEPS, beta_schedule="linear", clip_sample=False)
        noise = torch.randn(images.shape)

        def purified() -> torch.Tensor:
            sample = scheduler.add_noise(2 * images - 1, noise, torch.full((scans,), depth - 1))
            for step in range(depth - 1, -1, -1):
                predicted = network(sample, torch.full((scans,), step + 1))
                sample = scheduler.step(predicted, step, sample).prev_sample
            return ((sample + 1) / 2).clamp(0, 1)

        yield purified


@contextmanager
def examine(size: int, scans: int, depth: int, *, is_served: bool) -> Iterator[Callable[[], torch.Tensor]]:
    """What every scan goes through before anybody knows whether it is to be purified: the detector's parts."""
    with defended(size, scans, is_served=is_served) as (made, images):
        yield lambda: made.examine(images).scores


@contextmanager
def whole(size: int, scans: int, depth: int, *, is_served: bool) -> Iterator[Callable[[], torch.Tensor]]:
    """The whole defence of scans that are all flagged: eight copies of each, purified and classified."""
    with defended(size, scans, is_served=is_served) as (made, images):
        yield lambda: made.passage(images).logits


JOBS: dict[str, Job] = {
    "purify": partial(one_shot, is_served=True),
    "purify_in_pytorch": partial(one_shot, is_served=False),
    "diffpure": diffpure,
    "examine": partial(examine, is_served=True),
    "examine_in_pytorch": partial(examine, is_served=False),
    "whole": partial(whole, is_served=True),
    "whole_in_pytorch": partial(whole, is_served=False),
}
