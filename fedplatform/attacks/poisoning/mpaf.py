"""MPAF: fake hospitals that pull the model towards another one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedplatform.attacks.poisoning.attack import Situation


@dataclass(frozen=True)
class MPAF:
    """MPAF (Cao and Gong, CVPR Workshops 2022): scale * (base - global), towards an untrained model.

    The base model is drawn once from ``seed``, normal with standard deviation ``sigma`` in units of the weights. The
    paper's scale of 1e6 makes a mean overflow float32 after a few rounds; 10 is enough to break it. It looks at no
    scans and no honest update. Raises ValueError where it is not told the broadcast weights.
    """

    scale: float = 10.0
    sigma: float = 0.05
    seed: int = 0

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the own update (d,), of which only the shape is looked at, to what is sent (d,)."""
        if situation.weights is None:
            raise ValueError("MPAF needs the broadcast weights, got none")
        base = self.sigma * torch.randn(own.shape, generator=torch.Generator().manual_seed(self.seed))
        return self.scale * (base - situation.weights)
