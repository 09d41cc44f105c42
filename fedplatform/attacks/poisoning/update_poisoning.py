"""Attacks of a lone attacker on its own update: bent, drowned in noise, or never computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fedplatform.attacks.poisoning.attack import Situation


@dataclass(frozen=True)
class SignFlip:
    """Sign flipping, -scale * g: the attacker pulls back along what its scans have taught it.

    OptiGradTrust flips with ``scale=1``, which only slows a mean of 30 % attackers; the mean turns round where
    scale > (n - f) / f, so the default 4 does it from 20 % attackers on.
    """

    scale: float = 4.0

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the own update (d,) to what is sent (d,)."""
        return -self.scale * own


@dataclass(frozen=True)
class Sleeper:
    """The sleeper: honest up to and including round ``patience``, then sign flipping, -scale * g.

    It is the on-off attack on reputations (Sun et al., INFOCOM 2006), switched on once: a rule that scores trust over
    rounds has come to believe it by the time it strikes. ``scale`` as in :class:`SignFlip`.
    """

    patience: int = 5
    scale: float = 4.0

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"Sleeper needs patience >= 1, got {self.patience}; with none it is sign_flip")

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the own update (d,) to what is sent (d,)."""
        return -self.scale * own if self.lies_in(situation.round_number) else own.clone()

    def lies_in(self, round_number: int) -> bool:
        """Whether it has woken up."""
        return round_number > self.patience


@dataclass(frozen=True)
class Scaling:
    """Scaling, scale * g, x10 in OptiGradTrust (Karami et al., 2025); the boost of model replacement.

    A plain mean then overshoots, and the attacker's own scans outvote those of all others.
    """

    scale: float = 10.0

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the own update (d,) to what is sent (d,)."""
        return self.scale * own


@dataclass(frozen=True)
class PartialScaling:
    """Partial scaling, half of the coordinates x5 (OptiGradTrust, Karami et al., 2025).

    ``fraction`` in (0, 1] of the coordinates is scaled, the largest by magnitude. The paper does not say which half; a
    random one, drawn apart by each attacker, makes the step of a mean of 30 % attackers 1.6 times as long, which rather
    helps.
    """

    scale: float = 5.0
    fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"PartialScaling needs 0 < fraction <= 1, got {self.fraction}")

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the own update (d,) to what is sent (d,)."""
        magnitude = own.abs()
        kept = len(own) - math.ceil(self.fraction * len(own))
        threshold = magnitude.kthvalue(kept + 1).values
        return torch.where(magnitude >= threshold, self.scale * own, own)


@dataclass(frozen=True)
class GaussianNoise:
    """Gaussian noise, g + N(0, sigma^2) in every coordinate (OptiGradTrust, Karami et al., 2025: sigma .5 and 1).

    ``sigma`` is absolute, in units of the weights, as in the paper; the noise has length sigma * sqrt(d), and so
    outweighs any honest update of a large model.
    """

    sigma: float = 1.0

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the own update (d,) to what is sent (d,)."""
        return own + self.sigma * torch.randn(own.shape, generator=situation.generator)


@dataclass(frozen=True)
class FreeRider:
    """The free rider (Lin et al., 2019, "delta weights" with noise): it sends the server's last step as its own.

    It wants the model without the work, not to harm it: the last step, times ``scale``, plus noise of ``sigma`` in
    units of the weights, so that two riders never send the same. What its scans taught it is not used. In the first
    round there is no last step and it sends the noise alone.
    """

    scale: float = 1.0
    sigma: float = 1e-4

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the own update (d,), of which only the shape is looked at, to what is sent (d,)."""
        noise = torch.randn(own.shape, generator=situation.generator)
        return self.scale * situation.previous_delta + self.sigma * noise
