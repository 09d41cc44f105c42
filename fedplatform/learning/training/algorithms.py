"""Local algorithms: what is shared, what stays in the hospital, and what holds the two together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import nn

from fedplatform.learning.models import Classifier
from fedplatform.learning.parameters import batch_norm_names


@runtime_checkable
class Algorithm(Protocol):
    """What tells one local algorithm from another: the proximal strength, and which state never leaves the hospital."""

    @property
    def mu(self) -> float: ...

    def personal(self, model: nn.Module) -> frozenset[str]:
        """State names that stay in the hospital. Raises ValueError for a model without the part that would."""
        ...


@runtime_checkable
class HeadFirst(Protocol):
    """An algorithm that trains the personal part alone for some epochs, and then the shared part alone."""

    @property
    def head_epochs(self) -> int: ...


@runtime_checkable
class OwnModel(Protocol):
    """An algorithm by which a hospital keeps a whole model v of its own beside the shared one w.

    It answers with alpha v + (1 - alpha) w, and trains v through that sum, pulled to w by lam/2 ||v - w||^2.
    """

    @property
    def alpha(self) -> float: ...

    @property
    def learns_alpha(self) -> bool: ...

    @property
    def lam(self) -> float: ...


@runtime_checkable
class ControlVariates(Protocol):
    """An algorithm whose hospitals correct every step by c - c_i: the federation's control variate less their own.

    c travels behind the weights in the vector, as long as its shared part; c_i stays in the hospital.
    """

    corrects_drift: ClassVar[bool]

    def require(self, *, optimiser: str, momentum: float) -> None:
        """Raise ValueError for an optimiser whose steps are not the learning rate times the gradient."""
        ...


@dataclass(frozen=True)
class FedAvg:
    """Plain local training; everything is shared (McMahan et al., AISTATS 2017)."""

    mu: ClassVar[float] = 0.0

    def personal(self, model: nn.Module) -> frozenset[str]:  # noqa: ARG002
        """Nothing."""
        return frozenset()


@dataclass(frozen=True)
class FedProx:
    """Local training pulled back to the broadcast weights by mu/2 ||w - w_t||^2 (Li et al., MLSys 2020)."""

    mu: float = 0.01

    def personal(self, model: nn.Module) -> frozenset[str]:  # noqa: ARG002
        """Nothing."""
        return frozenset()


@dataclass(frozen=True)
class FedBN:
    """Batch normalisation, statistics and affine, never leaves the hospital (Li et al., ICLR 2021)."""

    mu: ClassVar[float] = 0.0

    def personal(self, model: nn.Module) -> frozenset[str]:
        """The batch normalisation."""
        return batch_norm_names(model)


@dataclass(frozen=True)
class FedBNP:
    """FedBN with the proximal term on all shared weights (FedBN-P of OptiGradTrust, arXiv 2507.23638)."""

    mu: float = 0.01

    def personal(self, model: nn.Module) -> frozenset[str]:
        """The batch normalisation."""
        return batch_norm_names(model)


@dataclass(frozen=True)
class SiloBN:
    """Batch normalisation's statistics stay in the hospital, its affine part is shared (Andreux et al., DCL 2020).

    Where hospitals hold few scans, an affine part of their own learns from too few; the statistics need none to learn.
    """

    mu: ClassVar[float] = 0.0

    def personal(self, model: nn.Module) -> frozenset[str]:
        """The running mean and variance, and the counter beside them."""
        return batch_norm_names(model) - {name for name, _ in model.named_parameters()}


@dataclass(frozen=True)
class FedPer:
    """The last layer stays in the hospital and is trained with the rest (Arivazhagan et al., 2019)."""

    mu: ClassVar[float] = 0.0

    def personal(self, model: nn.Module) -> frozenset[str]:
        """The last layer."""
        return _head_names(model)


@dataclass(frozen=True)
class FedRep:
    """The last layer stays in the hospital and is trained first, the body frozen (Collins et al., ICML 2021).

    ``head_epochs`` of it a round; then the body's usual local epochs, the last layer frozen.
    """

    head_epochs: int = 1
    mu: ClassVar[float] = 0.0

    def personal(self, model: nn.Module) -> frozenset[str]:
        """The last layer."""
        return _head_names(model)


@dataclass(frozen=True)
class Ditto:
    """Beside FedAvg a whole model of the hospital's own, pulled to the shared one (Li et al., ICML 2021).

    ``lam`` is the strength of the pull: at 0 the model knows only its own hospital, without bound it is the shared one.
    """

    lam: float = 0.1
    alpha: ClassVar[float] = 1.0
    learns_alpha: ClassVar[bool] = False
    mu: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if self.lam < 0:
            raise ValueError(f"the pull is lam >= 0, got {self.lam}")

    def personal(self, model: nn.Module) -> frozenset[str]:  # noqa: ARG002
        """No part of the shared model."""
        return frozenset()


@dataclass(frozen=True)
class APFL:
    """Beside FedAvg a whole model of the hospital's own, mixed with the shared one (Deng et al., 2020).

    ``alpha`` is the share of the hospital's own model at the start, from 0 (the shared one alone) to 1; each hospital
    learns its own share from there unless ``learns_alpha`` is False.
    """

    alpha: float = 0.5
    learns_alpha: bool = True
    lam: ClassVar[float] = 0.0
    mu: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"the share of the own model is 0 <= alpha <= 1, got {self.alpha}")

    def personal(self, model: nn.Module) -> frozenset[str]:  # noqa: ARG002
        """No part of the shared model."""
        return frozenset()


@dataclass(frozen=True)
class Scaffold:
    """FedAvg whose steps are corrected for the drift to each hospital's own optimum (Karimireddy et al., ICML 2020).

    Control variates by the paper's option II: after K steps of size eta from x to y, c_i becomes
    c_i - c + (x - y) / (K eta), and c moves by the share of hospitals in the round times the mean of these changes. A
    rule that is robust takes their median in place of the mean. An update is twice as long as the weights.
    """

    corrects_drift: ClassVar[bool] = True
    mu: ClassVar[float] = 0.0

    def personal(self, model: nn.Module) -> frozenset[str]:  # noqa: ARG002
        """No part of the model."""
        return frozenset()

    def require(self, *, optimiser: str, momentum: float) -> None:
        """Raise ValueError unless a step is the learning rate times the gradient."""
        if optimiser != "sgd" or momentum:
            raise ValueError(
                "scaffold corrects plain gradient steps, of --optimiser sgd --momentum 0, "
                f"got {optimiser} with momentum {momentum:g}"
            )


ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedbn": FedBN,
    "fedbn_p": FedBNP,
    "silo_bn": SiloBN,
    "fedper": FedPer,
    "fedrep": FedRep,
    "ditto": Ditto,
    "apfl": APFL,
    "scaffold": Scaffold,
}


def _head_names(model: nn.Module) -> frozenset[str]:
    if not isinstance(model, Classifier):
        raise ValueError(f"a {type(model).__name__} is no classifier and has no last layer that could stay")
    return model.head_names()
