"""Purification: drown the perturbation in noise, then take the noise off (DiffPure, Nie et al., ICML 2022)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from fedplatform.defence.noise import further_noise
from fedplatform.learning.models.noise_predictor import NoiseUnet


@runtime_checkable
class Purifier(Protocol):
    """Cleans scans; differentiable in the images, for whoever attacks it has to see through it."""

    def __call__(self, images: torch.Tensor, depth: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Cleaned images (n, c, h, w) of images in [0, 1].

        ``depth`` (n,) int64 says how deep each scan goes, 0 (as it is) to the purifier's t_max; ``noise`` (n, c, h, w)
        is standard normal. A scan's answer does not depend on the others.
        """
        ...


@runtime_checkable
class Sampler(Protocol):
    """The way back from a noisy picture to the scan."""

    def __call__(
        self, network: NoiseUnet, noisy: torch.Tensor, depth: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """The scan x (n, c, h, w) in about [-1, 1] of ``noisy`` pictures at ``depth`` (n,) of at least 1.

        ``noise`` (n, c, h, w) is what they were diffused with.
        """
        ...


@dataclass(frozen=True)
class DiffusionPurifier:
    """Diffuses a scan to its depth and comes back by ``sampler``; the answer is clamped to [0, 1].

    The default goes back in one shot: its exact gradient costs an attacker, and an honest evaluation, one network pass.
    """

    network: NoiseUnet = field(repr=False)
    sampler: Sampler

    def __call__(self, images: torch.Tensor, depth: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """See :class:`Purifier`. Raises ValueError where a depth is outside [0, t_max]."""
        if ((depth < 0) | (depth > self.network.t_max)).any():
            raise ValueError(f"the purifier was trained for depths 0 to {self.network.t_max}, got {depth.tolist()}")
        (deep,) = depth.nonzero(as_tuple=True)
        if not len(deep):
            return images
        depth, deep = depth[deep].to(images.device), deep.to(images.device)
        noisy = self.network.diffuse(images[deep], depth, noise[deep])
        cleaned = self.sampler(self.network, noisy, depth, noise[deep])
        return images.index_put((deep,), ((cleaned + 1) / 2).clamp(0, 1))


@dataclass(frozen=True)
class OneShot:
    """The network's direct estimate of the scan: one evaluation (Carlini et al., ICLR 2023)."""

    def __call__(
        self,
        network: NoiseUnet,
        noisy: torch.Tensor,
        depth: torch.Tensor,
        noise: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """See :class:`Sampler`."""
        return network.denoise(noisy, depth)


@dataclass(frozen=True)
class Ddim:
    """Deterministic steps (DDIM, Song et al., ICLR 2021), evenly spaced from each scan's own depth to 0."""

    steps: int = 5

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    def __call__(
        self,
        network: NoiseUnet,
        noisy: torch.Tensor,
        depth: torch.Tensor,
        noise: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """See :class:`Sampler`; diffusers' ``DDIMScheduler`` takes one depth for a whole batch, this one a scan."""
        for now, after in _pairs(depth, self.steps):
            x = network.denoise(noisy, now)
            predicted = (noisy - network.signal(now) * x) / network.spread(now)
            noisy = network.signal(after) * x + network.spread(after) * predicted
        return noisy


@dataclass(frozen=True)
class DpmSolver:
    """DPM-Solver++(2M), second order from the second step on (Lu et al., 2022), evenly spaced like :class:`Ddim`."""

    steps: int = 3

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    def __call__(
        self,
        network: NoiseUnet,
        noisy: torch.Tensor,
        depth: torch.Tensor,
        noise: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """See :class:`Sampler`; what diffusers' ``DPMSolverMultistepScheduler`` does at the same depths."""
        *pairs, (last, _) = _pairs(depth, self.steps)
        slope = torch.zeros_like(noisy)  # of x in half log-SNR
        x_before, gain_before = noisy, torch.zeros_like(network.signal(depth))
        for now, after in pairs:
            x = network.denoise(noisy, now)
            gain = _half_log_snr(network, after) - _half_log_snr(network, now)
            # A shallow scan has fewer depths than steps; where it stood still there is nothing to take a slope from.
            moved = gain_before > 0
            slope = torch.where(moved, (x - x_before) / gain_before.where(moved, 1.0), slope)
            shrunk = network.spread(after) / network.spread(now)
            noisy = shrunk * noisy + network.signal(after) * (1 - (-gain).exp()) * (x + gain / 2 * slope)
            x_before, gain_before = x, gain
        return network.denoise(noisy, last)


@dataclass(frozen=True)
class Ddpm:
    """Every single step back, with new noise at each (DDPM, Ho et al., NeurIPS 2020): the baseline, as in DiffPure.

    A scan at depth t costs t evaluations, and their memory where a gradient is taken.
    """

    def __call__(
        self, network: NoiseUnet, noisy: torch.Tensor, depth: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """See :class:`Sampler`; the noise of the steps is drawn from a stream that follows from ``noise``."""
        streams = further_noise(noise)
        for step in range(int(depth.max()), 0, -1):
            (here,) = (depth >= step).nonzero(as_tuple=True)
            now = torch.full_like(here, step)
            drawn = np.stack([streams[row].standard_normal(noisy.shape[1:], np.float32) for row in here.tolist()])
            x = network.denoise(noisy[here], now)
            abar, abar_after = network.abar[step], network.abar[step - 1]
            beta = 1 - abar / abar_after
            mean = abar_after.sqrt() * beta * x + (1 - beta).sqrt() * (1 - abar_after) * noisy[here]
            variance = beta * (1 - abar_after) / (1 - abar)
            stepped = mean / (1 - abar) + variance.sqrt() * torch.from_numpy(drawn).to(noisy.device)
            noisy = noisy.index_put((here,), stepped)
        return noisy


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a sampler needs steps >= 1, got {steps}")


def _pairs(depth: torch.Tensor, steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """From which depth (n,) to which each step goes, evenly from ``depth`` to 0 and reaching 0 only at the end."""
    depths = [-(-depth * (steps - done) // steps) for done in range(steps + 1)]
    return list(itertools.pairwise(depths))


def _half_log_snr(network: NoiseUnet, t: torch.Tensor) -> torch.Tensor:
    """Logarithm of signal over noise at depths ``t``, (n, 1, 1, 1)."""
    return (network.signal(t) / network.spread(t)).log()
