"""A mixture of experts on shared features, with a gate that belongs to the hospital."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from fedplatform.learning.models.residual import residual_features


@dataclass(frozen=True)
class Experts:
    """``k`` experts and a gate on the features of a small residual network (MedFedPure, arXiv 2511.11625, eq. 9).

    The paper's answer is sum_k alpha_k(x) f_k(x), the f_k taken here as probabilities; its loss adds
    ``beta`` ||phi||^2 over the gate's weights phi and ``gamma`` H(alpha), the mean entropy of the gate's answers. As
    written, a positive gamma makes gates decide for one expert each; a negative one spreads them. Experts and gate have
    one hidden layer of ``hidden``; ``width``, ``pool`` and ``blocks`` as in :class:`SmallResNet`. beta and gamma are
    those of the authors' later script, the paper names none.
    """

    k: int = 3
    width: int = 16
    pool: int = 2
    blocks: int = 1
    hidden: int = 64
    beta: float = 1e-4
    gamma: float = 0.1

    def __call__(self, *, channels: int, num_classes: int, size: int) -> MixtureOfExperts:
        """About 173,000 parameters with the defaults; raises ValueError for fewer than one expert or a small image."""
        if self.k < 1:
            raise ValueError(f"a mixture has at least one expert, got k={self.k}")
        if size < 8 * self.pool:
            raise ValueError(f"experts halve the pooled image three times and need size >= {8 * self.pool}")
        features = residual_features(channels, width=self.width, pool=self.pool, blocks=self.blocks)
        experts = [_perceptron(4 * self.width, self.hidden, num_classes) for _ in range(self.k)]
        gate = _perceptron(4 * self.width, self.hidden, self.k)
        return MixtureOfExperts(features, experts, gate, beta=self.beta, gamma=self.gamma)


class MixtureOfExperts(nn.Module):
    """Log-probabilities log sum_k alpha_k(x) p_k(x): a true mixture, and logits to everybody who asks for logits.

    Log-probabilities of a mixture and not a mixture of logits, because the loss is then the likelihood under the
    paper's eq. 9; the sum is taken in logarithms, so that its gradient never vanishes by rounding.
    """

    def __init__(
        self, features: nn.Module, experts: list[nn.Module], gate: nn.Module, *, beta: float, gamma: float
    ) -> None:
        super().__init__()
        self.features = features
        self.head = nn.ModuleList(experts)
        self.gate = gate
        self.beta = beta
        self.gamma = gamma

    @property
    def personal_names(self) -> frozenset[str]:
        """State names of the gate, which stays in the hospital whatever the algorithm shares."""
        return frozenset(f"gate.{name}" for name in self.gate.state_dict())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (n, num_classes) of normalised images (n, c, h, w)."""
        features = self.features(images)
        return self._mixed(features, self._log_shares(features))

    def penalised(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and beta ||phi||^2 + gamma H(alpha)."""
        features = self.features(images)
        log_shares = self._log_shares(features)
        entropy = -(log_shares.exp() * log_shares).sum(dim=1).mean()
        size = torch.stack([parameter.square().sum() for parameter in self.gate.parameters()]).sum()
        return self._mixed(features, log_shares), self.beta * size + self.gamma * entropy

    def shares(self, images: torch.Tensor) -> torch.Tensor:
        """The gate's answer alpha (n, k): how much each expert counts, summing to 1."""
        return self._log_shares(self.features(images)).exp()

    def _log_shares(self, features: torch.Tensor) -> torch.Tensor:
        return functional.log_softmax(self.gate(features), dim=1)

    def _mixed(self, features: torch.Tensor, log_shares: torch.Tensor) -> torch.Tensor:
        answers = torch.stack([functional.log_softmax(expert(features), dim=1) for expert in self.head], dim=1)
        return torch.logsumexp(answers + log_shares[:, :, None], dim=1)


def _perceptron(taken: int, hidden: int, given: int) -> nn.Module:
    return nn.Sequential(nn.Linear(taken, hidden), nn.ReLU(), nn.Linear(hidden, given))
