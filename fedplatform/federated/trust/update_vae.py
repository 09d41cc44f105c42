"""A variational autoencoder of updates: what it was not taught to expect, it cannot reconstruct."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedplatform.federated.trust.fingerprint import SKETCH
from fedplatform.federated.trust.networks import Weights, adam, initialised, with_weights

LATENT = 64
LONGEST = 10.0  # median norms; a longer sketch is cut to this, so that no error overflows and no lesson explodes
BATCH = 64
LEARNING_RATE = 2e-3


@dataclass(frozen=True, eq=False)
class VaeState:
    """What the autoencoder has learned: the weights of its network."""

    weights: Weights


@dataclass(frozen=True)
class UpdateVae:
    """The VAE of OptiGradTrust (arXiv 2507.23638): encoder 512-256-128, latent 64, mirrored decoder.

    It reads the sketch of an update (SKETCH numbers) in place of the update, so it costs the same for every model.
    ``beta`` weighs the KL divergence from the standard normal against the squared error (Higgins et al., ICLR 2017);
    small, because the error is what it is for and not the samples.
    """

    beta: float = 0.1

    def fit(
        self, sketches: np.ndarray, *, state: VaeState | None = None, generator: torch.Generator, steps: int
    ) -> VaeState:
        """Learn sketches (m, SKETCH) in median norms for so many steps of Adam, further from ``state`` where given.

        Every batch holds up to BATCH sketches drawn from all, each in a random length between its own and half of it:
        hospitals with few scans send short updates and are not to be a surprise. Raises ValueError without sketches.
        """
        if not len(sketches):
            raise ValueError("UpdateVae learns from sketches, got none")
        network = with_weights(_Network, state.weights if state else initialised(_Network, generator))
        optimizer = adam(network, learning_rate=LEARNING_RATE)
        known = _scaled(sketches)
        for _ in range(steps):
            drawn = torch.randint(len(known), (BATCH,), generator=generator)
            batch = known[drawn] * (0.5 + 0.5 * torch.rand(BATCH, 1, generator=generator))
            mean, log_variance = network.encode(batch)
            noise = torch.randn(mean.shape, generator=generator)
            restored = network.decoder(mean + noise * torch.exp(log_variance / 2))
            divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
            loss = ((restored - batch).square().sum(dim=1) + self.beta * divergence).mean() / SKETCH
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return VaeState(dict(network.state_dict()))

    def errors(self, state: VaeState, sketches: np.ndarray) -> np.ndarray:
        """Squared reconstruction error of sketches (n, SKETCH) from the latent mean: (n,) float64, in median norms."""
        network = with_weights(_Network, state.weights)
        with torch.inference_mode():
            given = _scaled(sketches)
            restored = network.decoder(network.encode(given)[0])
            errors: np.ndarray = (restored - given).double().square().sum(dim=1).numpy() / SKETCH
        return errors


def bounded(sketches: np.ndarray) -> np.ndarray:
    """Sketches (n, SKETCH) cut to LONGEST in their own direction, float32; whatever was sent, the result is finite."""
    wide = np.nan_to_num(sketches.astype(np.float64), posinf=1e30, neginf=-1e30)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    cut: np.ndarray = (wide * np.minimum(1.0, LONGEST / np.maximum(norms, 1e-12))).astype(np.float32)
    return cut


def _scaled(sketches: np.ndarray) -> torch.Tensor:
    """Sketches whose entries, not whose norms, are about 1: what a network's first weights are made for."""
    return torch.from_numpy(bounded(sketches) * np.float32(SKETCH**0.5))


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(SKETCH, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 2 * LATENT)
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 128), nn.ReLU(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, SKETCH)
        )

    def encode(self, sketches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_variance = self.encoder(sketches).chunk(2, dim=1)
        return mean, log_variance.clamp(-10.0, 10.0)
