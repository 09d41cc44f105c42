"""Between a model and the one flat vector that travels: which weights are shared, and which stay in the hospital."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedplatform.core.compute import CPU
from fedplatform.core.messages import Layer
from fedplatform.learning.models.freezing import has_frozen_statistics

BATCH_NORM = (nn.modules.batchnorm._NormBase,)
PersonalState = Mapping[str, torch.Tensor]  # by state name; never leaves the hospital


def batch_norm_names(model: nn.Module) -> frozenset[str]:
    """State names of every batch normalisation that is not frozen, found by module type (FedBN, Li et al., ICLR 2021).

    By type and not by name, because ``downsample.1`` of a ResNet is one and a layer called ``bn_head`` may not be.
    """
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, BATCH_NORM) and not has_frozen_statistics(module)
        for name in module.state_dict()
    )


def names_that_stay(model: nn.Module) -> frozenset[str]:
    """State names that stay in the hospital under every algorithm.

    They are what a module names in ``personal_names`` (a gate), and :func:`measured_names`.
    """
    return _named_by(model, "personal_names") | measured_names(model)


def measured_names(model: nn.Module) -> frozenset[str]:
    """State names of the buffers that training may change and that are no batch normalisation.

    A running scale, the power iteration of spectral normalisation, the codebook of a moving average: each describes one
    hospital's weights or scans, and a mean over hospitals need not be one (two power iterations may have opposite
    signs). What a module names in ``constant_names`` never changes.
    """
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)} & set(model.state_dict())
    return frozenset(buffers - batch_norm_names(model) - _named_by(model, "constant_names"))


def _named_by(model: nn.Module, attribute: str) -> frozenset[str]:
    """State names that modules list, each its own, in an attribute."""
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(module, attribute, ())
    )


def plain_copy(value: torch.Tensor) -> torch.Tensor:
    """A copy on the host in the row-major layout of a file: sums over it run in the same order before and after."""
    return value.detach().to(CPU, copy=True, memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class ParameterLayout:
    """The order of the travelling vector: ``num_shared`` weights, then (if not personal) the batch normalisation.

    Only the first ``num_shared`` entries ever enter a distance, a cosine or a norm. ``names`` and ``shapes`` describe
    the travelling entries; ``personal`` names the state that never leaves the hospital. Behind them all come, under an
    algorithm that has any, ``num_controls`` control variates, which are no part of the model.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    num_shared: int
    personal: tuple[str, ...]
    num_controls: int = 0

    @property
    def shared_names(self) -> tuple[str, ...]:
        """Names of the first ``num_shared`` entries."""
        sizes = itertools.accumulate(math.prod(shape) for shape in self.shapes)
        return tuple(name for name, end in zip(self.names, sizes, strict=True) if end <= self.num_shared)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The arrays that the first ``num_shared`` entries consist of, in order."""
        shared = len(self.shared_names)
        return tuple(map(Layer, self.names[:shared], self.shapes[:shared]))

    @staticmethod
    def of(model: nn.Module, *, personal: frozenset[str], controls: bool = False) -> ParameterLayout:
        """Read the layout off a model of which the state named in ``personal`` stays in the hospital.

        What is not trained (mean/std, counters, frozen layers) is left out: every process that builds the model has it
        already, and an attacker cannot move what nobody sends. With ``controls`` there is a control variate for each
        shared weight. Raises ValueError for a name that the model
        does not have.
        """
        state = model.state_dict()
        if unknown := personal - set(state):
            raise ValueError(f"the model has no state called {min(unknown)!r} that could stay in the hospital")
        batch_norm = batch_norm_names(model)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        travelling = [name for name in state if name not in personal | frozen]
        shared = [name for name in travelling if name in trained and name not in batch_norm]
        normal = [name for name in travelling if name in batch_norm and state[name].is_floating_point()]
        names = shared + normal
        num_shared = sum(state[name].numel() for name in shared)
        return ParameterLayout(
            names=tuple(names),
            shapes=tuple(tuple(state[name].shape) for name in names),
            num_shared=num_shared,
            personal=tuple(name for name in state if name in personal),
            num_controls=num_shared if controls else 0,
        )

    @property
    def size(self) -> int:
        """Length d of the travelling vector."""
        return sum(math.prod(shape) for shape in self.shapes) + self.num_controls

    def flatten(self, model: nn.Module) -> np.ndarray:
        """The travelling weights of a model as one (d,) float32 vector, copied to the host once, block by block.

        Control variates are zero in it.
        """
        state = model.state_dict()
        flat = np.empty(self.size, np.float32)
        self.controls(flat)[:] = 0
        for name, block in self._blocks(flat):
            torch.from_numpy(block).copy_(state[name].detach())
        return flat

    def unflatten(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The (d,) vector cut into named arrays, each a copy."""
        return {name: block.copy() for name, block in self._blocks(weights)}

    def load(self, weights: np.ndarray, model: nn.Module) -> None:
        """Write a (d,) vector into a model in place; personal state keeps its values."""
        state = model.state_dict()
        for name, block in self._blocks(weights):
            state[name].copy_(torch.tensor(block))  # a copy, for what was sent may be read-only

    def joined(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Named arrays as the (d,) vector that :meth:`unflatten` cuts; control variates are zero in it.

        Raises ValueError where they are another model's.
        """
        flat = np.zeros(self.size, np.float32)
        if {name: value.shape for name, value in tensors.items()} != dict(zip(self.names, self.shapes, strict=True)):
            raise ValueError("these arrays are of another model")
        for name, block in self._blocks(flat):
            block[...] = tensors[name]
        return flat

    def controls(self, weights: np.ndarray) -> np.ndarray:
        """The control variates (num_controls,) at the end of a vector, a view."""
        return weights[len(weights) - self.num_controls :]

    def _blocks(self, weights: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The parts of a (d,) vector by name, each a view in its own shape."""
        if weights.shape != (self.size,):
            raise ValueError(f"the model takes a vector of shape ({self.size},), got {weights.shape}")
        ends = itertools.accumulate(math.prod(shape) for shape in self.shapes)
        for name, shape, end in zip(self.names, self.shapes, ends, strict=True):
            yield name, weights[end - math.prod(shape) : end].reshape(shape)
