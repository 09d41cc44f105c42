"""Stochastic gradient descent by PyTorch's arithmetic, without what its class brings along."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim.sgd import sgd


class Sgd:
    """SGD with momentum (Sutskever et al., ICML 2013) as ``torch.optim.SGD`` does it, by the same function.

    To make the class costs a second of CPU time and 70 MB, because it imports PyTorch's compiler; and it would be made
    in the process of every hospital. ``parameters`` are leaves; one without a gradient stays as it is.
    """

    def __init__(
        self, parameters: Iterable[torch.Tensor], *, learning_rate: float, momentum: float, weight_decay: float
    ) -> None:
        self._parameters = list(parameters)
        self._velocities: list[torch.Tensor | None] = [None] * len(self._parameters)
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._weight_decay = weight_decay

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step against the gradients."""
        moving = [(n, p, p.grad) for n, p in enumerate(self._parameters) if p.grad is not None]
        velocities = [self._velocities[n] for n, _, _ in moving]
        sgd(
            [parameter for _, parameter, _ in moving],
            [slope for _, _, slope in moving],
            velocities,
            lr=self._learning_rate,
            momentum=self._momentum,
            weight_decay=self._weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for (n, _, _), velocity in zip(moving, velocities, strict=True):
            self._velocities[n] = velocity
