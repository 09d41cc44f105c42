"""A hospital's own copy of the model, kept in its personal state beside what the federation shares."""

from __future__ import annotations

import torch
from torch import nn

from fedplatform.learning.parameters import PersonalState, batch_norm_names, measured_names, plain_copy
from fedplatform.learning.training.algorithms import OwnModel

OWN = "own:"  # in front of the state names of the copy
ALPHA = "share of own"  # its share in what the hospital answers with


def first_copy(model: nn.Module, algorithm: OwnModel) -> dict[str, torch.Tensor]:
    """The copy before the first round: the model as it is, and the share that the algorithm starts from."""
    state = model.state_dict()
    names = {name for name, _ in model.named_parameters()} | batch_norm_names(model) | measured_names(model)
    copy = {OWN + name: plain_copy(state[name]) for name in state if name in names}
    return {**copy, ALPHA: torch.tensor(float(algorithm.alpha))}


def mix_in(model: nn.Module, personal: PersonalState) -> None:
    """Turn a model that holds the shared weights w into alpha v + (1 - alpha) w, with the copy's batch statistics.

    Statistics are taken over and not mixed, because those of a mixture are not the mixture of those.
    """
    alpha = float(personal[ALPHA])
    state = model.state_dict()
    trained = {name for name, _ in model.named_parameters()}
    for name, value in state.items():
        own = personal.get(OWN + name)
        if own is not None and name in trained:
            value.lerp_(own.to(value.device), alpha)
        elif own is not None:
            value.copy_(own)
