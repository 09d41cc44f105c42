"""What local training minimises: the usual loss, the loss under attack, or a generative network's own.

Each objective of a classifier says which tasks it learns; :func:`require_task` refuses the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn import functional

from fedplatform.core.tasks import TASKS, TaskName
from fedplatform.learning.models import Classifier, Experts, ModelBuilder, OrdinalClassifier


@dataclass(frozen=True, eq=False)
class Batch:
    """What a step learns from.

    ``images`` are (n, c, h, w) in [0, 1], ``labels`` (n,) int64, or (n, k) where a scan has any number of findings;
    whatever an objective draws comes from ``generator``. ``progress`` in [0, 1] is the share of all training that is
    done. ``counts`` float32 are the hospital's scans for training by class (k,), or without and with each finding
    (k, 2); None where nobody counted.
    """

    images: torch.Tensor
    labels: torch.Tensor
    generator: torch.Generator
    progress: float = 1.0
    counts: torch.Tensor | None = None


@runtime_checkable
class Objective(Protocol):
    """What local training minimises."""

    def network(self, model: ModelBuilder, *, channels: int, num_classes: int, size: int) -> nn.Module:
        """The network that is trained, built around what ``model`` builds."""
        ...

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """The loss that a step minimises, a scalar."""
        ...

    def plain_loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """The loss by which a network is judged, a scalar: nobody attacks and nothing is added."""
        ...

    def probabilities(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """What the network answers (n, num_classes); (n, 0) from one that names no class."""
        ...


@runtime_checkable
class Movable(Protocol):
    """An objective that carries networks of its own."""

    def to(self, device: torch.device) -> Objective:
        """The same with its networks on a device; they are moved and not copied."""
        ...


class Classification:
    """What the objectives of classifiers have in common; ``tasks`` are those that one learns."""

    tasks: ClassVar[tuple[TaskName, ...]] = ("multiclass", "ordinal")

    def outputs(self, num_classes: int) -> int:
        """How many numbers the body of the network answers."""
        return num_classes

    def network(self, model: ModelBuilder, *, channels: int, num_classes: int, size: int) -> nn.Module:
        """A classifier behind its mean/std layer."""
        return Classifier(model(channels=channels, num_classes=num_classes, size=size))

    def plain_loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy on the scans as they are."""
        return functional.cross_entropy(network(batch.images), batch.labels)

    def probabilities(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Softmax of the logits."""
        return functional.softmax(network(images), dim=1)


@dataclass(frozen=True)
class CrossEntropy(Classification):
    """Cross-entropy with the labels, their certainty lowered by ``label_smoothing`` (Szegedy et al., CVPR 2016).

    Three remedies against classes of unequal size, each by the hospital's own counts, which never leave it:
    ``class_weights="balanced"`` weighs a scan by n / (k n_c), so that every class that is there counts alike;
    ``logit_adjustment`` adds that many times log(n_c / n) to the logits in training (Menon et al., ICLR 2021; by local
    counts as FedLC, Zhang et al., ICML 2022); ``focal`` is the exponent of (1 - p) in front of the loss (Lin et al.,
    ICCV 2017). Raises ValueError for values that make no sense.

    >>> import fedplatform as fp
    >>> fp.Experiment.from_settings({"objective": "cross_entropy(class_weights='balanced')"}).objective
    CrossEntropy(label_smoothing=0.0, class_weights='balanced', logit_adjustment=0.0, focal=0.0)
    """

    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    logit_adjustment: float = 0.0
    focal: float = 0.0

    def __post_init__(self) -> None:
        if self.class_weights not in ("none", "balanced"):
            raise ValueError(f"class_weights is none or balanced, got {self.class_weights!r}")
        if not 0 <= self.label_smoothing < 1 or self.logit_adjustment < 0 or self.focal < 0:
            raise ValueError(
                f"needs 0 <= label_smoothing < 1, logit_adjustment >= 0 and focal >= 0, got "
                f"label_smoothing={self.label_smoothing}, logit_adjustment={self.logit_adjustment}, focal={self.focal}"
            )

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean over the batch."""
        smoothing = self.label_smoothing
        if self.class_weights == "none" and not self.logit_adjustment and not self.focal:
            return penalised_cross_entropy(network, batch.images, batch.labels, label_smoothing=smoothing)
        assert batch.counts is not None, "remedies against imbalance need the counts of the classes"
        logits, penalty = _penalised(network, batch.images)
        if self.logit_adjustment:
            # Half a scan of a class that is not there: the logarithm of none has no end.
            logits = logits + self.logit_adjustment * (batch.counts.clamp(min=0.5) / batch.counts.sum()).log()
        losses = functional.cross_entropy(logits, batch.labels, reduction="none", label_smoothing=smoothing)
        if self.focal:
            right = functional.softmax(logits, dim=1).gather(1, batch.labels[:, None]).squeeze(1)
            losses = losses * (1 - right) ** self.focal
        if self.class_weights == "balanced":
            present = (batch.counts > 0).sum()
            losses = losses * (batch.counts.sum() / (present * batch.counts.clamp(min=1)))[batch.labels]
        return _with(losses.mean(), penalty)


@dataclass(frozen=True)
class BinaryCrossEntropy(Classification):
    """Binary cross-entropy of each finding by itself, the mean over scans and findings.

    ``class_weights="balanced"`` weighs the scans with a finding by n / (2 n_with) and those without it by
    n / (2 n_without), by the hospital's own counts, so that both count alike; a finding that all scans have or none is
    not weighed. The ratio of the two is the ``pos_weight`` of other tools. Raises ValueError for other weights.
    """

    tasks: ClassVar[tuple[TaskName, ...]] = ("multilabel",)

    class_weights: Literal["none", "balanced"] = "none"

    def __post_init__(self) -> None:
        if self.class_weights not in ("none", "balanced"):
            raise ValueError(f"class_weights is none or balanced, got {self.class_weights!r}")

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean over the batch and the findings."""
        logits, penalty = _penalised(network, batch.images)
        weights = None
        if self.class_weights == "balanced":
            assert batch.counts is not None, "balanced weights need the counts of the findings"
            each = batch.counts.sum(dim=1, keepdim=True) / (2 * batch.counts.clamp(min=1))
            each = torch.where((batch.counts > 0).all(dim=1, keepdim=True), each, torch.ones_like(each))
            weights = torch.where(batch.labels > 0, each[:, 1], each[:, 0])
        return _with(functional.binary_cross_entropy_with_logits(logits, batch.labels.float(), weights), penalty)

    def plain_loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean binary cross-entropy on the scans as they are."""
        return functional.binary_cross_entropy_with_logits(network(batch.images), batch.labels.float())

    def probabilities(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Sigmoid of the logits: the probability of each finding by itself."""
        return functional.sigmoid(network(images))


@dataclass(frozen=True)
class Ordinal(Classification):
    """The likelihood of ordered classes, from k - 1 conditional questions: given that y > j - 1, is y > j?

    CORN (Shi, Cao and Raschka, Pattern Analysis and Applications 2023): the body's k - 1 outputs f_j are logits of
    P(y > j | y > j - 1), so P(y > j) is a product that can only fall with j, and its differences are probabilities of k
    classes. The loss is the sum of a scan's binary cross-entropies over the questions that its class answers, which is
    its negative log-likelihood; CORN divides a batch's sum by the number of questions, we by the number of scans.
    """

    tasks: ClassVar[tuple[TaskName, ...]] = ("ordinal",)

    def outputs(self, num_classes: int) -> int:
        """One for each border between neighbouring classes."""
        return num_classes - 1

    def network(self, model: ModelBuilder, *, channels: int, num_classes: int, size: int) -> nn.Module:
        """A classifier that answers log-probabilities of k classes, put together from k - 1 outputs."""
        return OrdinalClassifier(model(channels=channels, num_classes=self.outputs(num_classes), size=size))

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean over the batch."""
        return penalised_cross_entropy(network, batch.images, batch.labels)


@dataclass(frozen=True)
class AdversarialTraining(Classification):
    """Cross-entropy on scans attacked within ``epsilon`` of each pixel (l_inf, pixel units).

    One step from a random start is FGSM-RS (Wong et al., ICLR 2020), more are PGD (Madry et al., ICLR 2018). Epsilon
    grows linearly over the first ``warm_up`` of all training: at full strength from the start a small network may
    learn nothing at all.
    """

    epsilon: float
    steps: int = 1
    warm_up: float = 0.3

    def __post_init__(self) -> None:
        _check(self.epsilon, self.steps, self.warm_up)

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean over the attacked batch. Attacked in training mode, which keeps the batch statistics those of attack."""
        attacked = perturbed(
            lambda moved: functional.cross_entropy(network(moved), batch.labels),
            batch.images,
            epsilon=_risen(self.epsilon, batch.progress, self.warm_up),
            steps=self.steps,
            generator=batch.generator,
        )
        return penalised_cross_entropy(network, attacked, batch.labels)


@dataclass(frozen=True)
class Trades(Classification):
    """Cross-entropy on scans as they are plus ``beta`` KL(p(x) || p(x')) (TRADES, Zhang et al., ICML 2019).

    x' lies within ``epsilon`` of each pixel (pixel units), where KL grows fastest. The authors take 10 ``steps``; one,
    from a random start, costs a fourth of that. ``warm_up`` as in :class:`AdversarialTraining`.
    """

    epsilon: float
    beta: float = 6.0
    steps: int = 1
    warm_up: float = 0.3

    def __post_init__(self) -> None:
        _check(self.epsilon, self.steps, self.warm_up)

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean over the batch."""
        with torch.no_grad():
            target = functional.log_softmax(network(batch.images), dim=1)
        attacked = perturbed(
            lambda moved: _divergence(target, functional.log_softmax(network(moved), dim=1)),
            batch.images,
            epsilon=_risen(self.epsilon, batch.progress, self.warm_up),
            steps=self.steps,
            generator=batch.generator,
        )
        logits, penalty = _penalised(network, batch.images)
        calm, moved = functional.log_softmax(logits, dim=1), functional.log_softmax(network(attacked), dim=1)
        return _with(functional.nll_loss(calm, batch.labels) + self.beta * _divergence(calm, moved), penalty)


@runtime_checkable
class _Generative(Protocol):
    def loss(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor: ...


@dataclass(frozen=True)
class Generative:
    """The loss that a network carries itself, ``loss(images, generator)``: masked autoencoders, noise predictors."""

    def network(self, model: ModelBuilder, *, channels: int, num_classes: int, size: int) -> nn.Module:
        """What the builder builds. Raises ValueError where that has no loss of its own."""
        network = model(channels=channels, num_classes=num_classes, size=size)
        if not isinstance(network, _Generative):
            raise ValueError(
                f"the generative objective takes a network with a loss, a {type(network).__name__} has none"
            )
        return network

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """The network's own; nobody looks at labels."""
        return self.plain_loss(network, batch)

    def plain_loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """The same."""
        assert isinstance(network, _Generative)
        return network.loss(batch.images, batch.generator)

    def probabilities(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """None: (n, 0)."""
        return images.new_zeros(len(images), 0)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "ordinal": Ordinal,
    "adversarial": AdversarialTraining,
    "trades": Trades,
    "generative": Generative,
}


def require_task(task: TaskName, objective: Objective, model: ModelBuilder) -> None:
    """Raise ValueError where an objective of ours, or a network, does not learn a task; your own may learn any."""
    if isinstance(objective, Classification) and task not in objective.tasks:
        name = next((name for name, kind in OBJECTIVES.items() if kind is type(objective)), type(objective).__name__)
        raise ValueError(
            f"objective {name} learns task {' or '.join(objective.tasks)}; task {task} takes {TASKS[task].objective} "
            "or an objective of your own"
        )
    if isinstance(model, Experts) and isinstance(objective, BinaryCrossEntropy | Ordinal):
        raise ValueError(f"model experts mixes probabilities of one class out of k, which task {task} does not ask for")


def body_outputs(objective: Objective, num_classes: int) -> int:
    """How many numbers the body of a network answers: one a class unless the objective says otherwise."""
    return objective.outputs(num_classes) if isinstance(objective, Classification) else num_classes


def _check(epsilon: float, steps: int, warm_up: float) -> None:
    if not 0 <= epsilon <= 1 or steps < 1 or not 0 <= warm_up <= 1:
        raise ValueError(
            f"needs 0 <= epsilon <= 1 in pixel units, steps >= 1 and 0 <= warm_up <= 1, "
            f"got epsilon={epsilon}, steps={steps}, warm_up={warm_up}"
        )


def _risen(epsilon: float, progress: float, warm_up: float) -> float:
    return epsilon if progress >= warm_up else epsilon * progress / warm_up


def perturbed(
    height: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    *,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """The batch moved up ``height``, a scalar, within epsilon and [0, 1] from a uniform start: FGSM-RS and PGD in one.

    One step is 1.25 epsilon long (Wong et al.), each of several 2.5 epsilon / steps (Madry et al.). Training does not
    use :class:`~fedplatform.attacks.evasion.PGD`: it climbs the mean of a batch instead of each scan, goes on where a
    gradient is not finite (the server refuses such an update), and one pixel in 100,000 would be rounded otherwise,
    so that trained weights would not keep their bits.
    """
    step = 1.25 * epsilon if steps == 1 else 2.5 * epsilon / steps
    start = (2 * torch.rand(images.shape, generator=generator) - 1).to(images) * epsilon
    moved = (images + start).clamp(0, 1)
    for _ in range(steps):
        moved.requires_grad_()
        (slope,) = torch.autograd.grad(height(moved), moved)
        moved = (moved.detach() + step * slope.sign() - images).clamp(-epsilon, epsilon).add(images).clamp(0, 1)
    return moved


def _divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Mean KL(p || q) over a batch, both (n, num_classes) and in logarithms."""
    return functional.kl_div(q, p, reduction="batchmean", log_target=True)


def _penalised(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    return network.penalised(images) if isinstance(network, Classifier) else (network(images), None)


def penalised_cross_entropy(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Mean cross-entropy with ``labels`` (n,), and what a classifier's body wants added to it; a scalar."""
    logits, penalty = _penalised(network, images)
    return _with(functional.cross_entropy(logits, labels, label_smoothing=label_smoothing), penalty)


def _with(loss: torch.Tensor, penalty: torch.Tensor | None) -> torch.Tensor:
    return loss if penalty is None else loss + penalty
