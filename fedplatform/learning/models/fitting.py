"""Which of some stored weights fit a network: by name, or by order and shape; and in words what was made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedplatform.learning.models.classifier import Classifier

PREFIXES = ("", "body.", "module.", "module.body.", "model.", "backbone.")  # that others put before a network's names
COUNTER = "num_batches_tracked"  # of batch normalisation; nothing is computed from it
NAMED = 4  # layers in one line


@dataclass(frozen=True, eq=False)
class Fitted:
    """The weights that fit a network, by its state names, and what became of the rest."""

    state: Mapping[str, np.ndarray]
    new: tuple[str, ...]  # state names of the network that start from random weights
    unused: tuple[str, ...]  # names of stored weights for which the network has no place
    adapted: str = ""  # the first convolution, in words, where its channels were converted

    @property
    def words(self) -> str:
        """What was loaded, what is new and what was not used, in one line."""
        parts = [f"{len(self.state)} arrays loaded"]
        if self.adapted:
            parts.append(self.adapted)
        parts.append(f"new: {layers(self.new)}" if self.new else "nothing is new")
        if self.unused:
            parts.append(f"not used: {layers(self.unused)}")
        return "; ".join(parts)


def fit(stored: Mapping[str, torch.Tensor], network: nn.Module, *, may_lack: frozenset[str] = frozenset()) -> Fitted:
    """Fit stored weights to a network.

    They are matched by name, also behind a prefix such as ``module.``; where no name matches, by order, if all shapes
    agree. The first convolution is converted to the network's channels. Only the head (another number of classes) and
    ``may_lack`` may stay as they are. Raises ValueError that names the layers for anything else.

    >>> from torch import nn
    >>> wide, narrow = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 9)), nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> fit(wide.state_dict(), narrow).words
    '2 arrays loaded; new: 1'
    """
    wanted = network.state_dict()
    named = _renamed(stored, wanted)
    free = head_names(network) | may_lack
    first = _first_convolution(network)
    state: dict[str, np.ndarray] = {}
    new, misfits, adapted = [], [], ""
    for name, here in wanted.items():
        value = named.get(name)
        if value is not None and name == first and value.shape != here.shape and value.shape[2:] == here.shape[2:]:
            adapted = f"{name} from {value.shape[1]} to {here.shape[1]} channels"
            value = to_channels(value, here.shape[1])
        if value is not None and value.shape == here.shape:
            state[name] = _plain(value.to(here.dtype), name)
        elif name in free:
            new.append(name)
        elif not name.endswith(COUNTER):
            there = "none" if value is None else tuple(value.shape)
            misfits.append(f"{name} is {tuple(here.shape)} here and {there} there")
    if misfits:
        more = f", and {len(misfits) - NAMED} more" if len(misfits) > NAMED else ""
        raise ValueError(f"{'; '.join(misfits[:NAMED])}{more}")
    if not state:
        raise ValueError("no layer of it fits")
    return Fitted(state, tuple(new), tuple(name for name in named if name not in wanted), adapted)


def to_channels(weights: torch.Tensor, channels: int) -> torch.Tensor:
    """The weights (o, c, h, w) of a first convolution for another number of channels.

    A scan that is alike in all channels gives the same before and after: to one channel the weights are summed (a grey
    scan gives what its copies in all channels gave), to several each gets its share of that sum.

    >>> [to_channels(torch.ones(1, 3, 1, 1), channels).flatten().tolist() for channels in (1, 2)]
    [[3.0], [1.5, 1.5]]
    """
    return (weights.sum(dim=1, keepdim=True) / channels).repeat(1, channels, 1, 1)


def head_names(network: nn.Module) -> frozenset[str]:
    """State names of the last layer of a classifier's body; none where there is no such layer."""
    try:
        return frozenset(name.removeprefix("body.") for name in Classifier(network).head_names())
    except ValueError:
        return frozenset()


def layers(names: Iterable[str]) -> str:
    """The layers that state names belong to, the first few of them.

    >>> layers(["fc.weight", "fc.bias"])
    'fc'
    """
    distinct = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    more = f" and {len(distinct) - NAMED} more" if len(distinct) > NAMED else ""
    return ", ".join(distinct[:NAMED]) + more


def _renamed(stored: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    best = max(PREFIXES, key=lambda prefix: sum(f"{prefix}{name}" in stored for name in wanted))
    if any(f"{best}{name}" in stored for name in wanted):
        return {name.removeprefix(best): value for name, value in stored.items()}
    if [value.shape for value in stored.values()] == [value.shape for value in wanted.values()]:
        return dict(zip(wanted, stored.values(), strict=True))
    return dict(stored)


def _first_convolution(network: nn.Module) -> str | None:
    found = (name for name, module in network.named_modules() if isinstance(module, nn.Conv2d) and module.groups == 1)
    name = next(found, None)
    return None if name is None else f"{name}.weight"


def _plain(value: torch.Tensor, name: str) -> np.ndarray:
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} holds a value that is not finite")
    array: np.ndarray = value.detach().cpu().contiguous().numpy().copy()
    return array
