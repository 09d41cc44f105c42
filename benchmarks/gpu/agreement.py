"""Whether a device gives the answers of the CPU, part by part, within a tolerance that stands beside each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.gpu.work import Work
from fedplatform.attacks.evasion import PGD
from fedplatform.core.seeding import torch_generator

EPSILON = 8 / 255


@dataclass(frozen=True)
class Check:
    """How far one part is from the CPU's answer, and how far it may be."""

    part: str
    measure: str
    found: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """A figure that is not a number fails."""
        return self.found <= self.tolerance


def checks(here: Work, there: Work) -> Iterator[Check]:
    """Compare the CPU's work with that of a device."""
    delta, loss = trained(here)
    delta_there, loss_there = trained(there)
    yield Check("training, float32", "L2 error of the update, relative", _relative(delta_there, delta), 1e-2)
    yield Check("training, float32", "mean loss, relative", abs(loss_there - loss) / loss, 1e-3)
    halved = Work(replace(there.compute, precision="bf16"), there.sizes, there.folder)
    yield Check("training, bf16", "mean loss, relative", abs(trained(halved)[1] - loss) / loss, 5e-2)
    yield Check("predictions", "probability", _largest(predicted(there, delta), predicted(here, delta)), 1e-3)

    steps = np.outer(np.linspace(-0.5, 0.5, 8, dtype=np.float32), here.root.delta)
    same = replace(there.root, delta=here.root.delta, weights=here.root.weights)
    losses = here.root.losses(steps)
    yield Check("root losses", "relative", _largest(same.losses(steps) / losses, np.ones_like(losses)), 1e-3)
    slope = here.root.gradient(here.root.delta)
    yield Check("root gradient", "L2, relative", _relative(same.gradient(here.root.delta), slope), 1e-2)

    with torch.no_grad(), there.compute.computing():
        examined, passed = there.defended.examine(there.images[0]), there.defended.passage(there.images[0])
    with torch.no_grad():
        expected, passage = here.defended.examine(here.images[0]), here.defended.passage(here.images[0])
    for name, scores in expected.parts.items():
        scale = float(scores.std()) or 1.0
        found = _largest(_host(examined.parts[name]), _host(scores)) / scale
        yield Check(f"detector, {name}", "standard deviations", found, 1e-2)
    yield Check("purifier", "pixel of [0, 1]", _largest(_host(passed.purified), _host(passage.purified)), 1e-3)
    yield Check("logits of the whole defence", "largest", _largest(_host(passed.logits), _host(passage.logits)), 1e-2)

    unlike = np.abs(attacked(there) - attacked(here)) > 1e-4
    yield Check("PGD", "share of pixels moved otherwise", float(unlike.mean()), 2e-2)
    one, other = certified(there), certified(here)
    yield Check("certificate", "share of noisy copies answered otherwise", _largest(one, other) / other.sum(), 2e-2)


def trained(work: Work) -> tuple[np.ndarray, float]:
    """The update of a hospital's first round, and its mean loss."""
    trainer = work.trainer()
    hospital = work.hospital
    delta, _, loss = trainer.fit(
        trainer.initial_weights,
        dict(trainer.initial_personal),
        images=hospital.training_images,
        labels=hospital.training_labels,
        groups=hospital.training_groups,
        round_number=1,
        generator=torch_generator(0, "benchmark"),
        should_stop=lambda: False,
    )
    return delta, loss


def predicted(work: Work, delta: np.ndarray) -> np.ndarray:
    """Probabilities of the same network everywhere."""
    trainer = work.trainer()
    weights, personal = trainer.initial_weights + delta, dict(trainer.initial_personal)
    return trainer.predict(weights, personal, work.hospital.training_images)


def attacked(work: Work) -> np.ndarray:
    """Scans attacked through the bare classifier."""
    images, labels = work.images
    with work.compute.computing():
        made = PGD(EPSILON, steps=5)(work.defended.classifier, images, labels, generator=torch_generator(0, "PGD"))
    return _host(made)


def certified(work: Work) -> np.ndarray:
    """How often each class was answered to noisy copies of a scan."""
    with work.compute.computing():
        found = work.defended.certify(
            work.images[0][0], sigma=0.25, samples=200, generator=torch_generator(0, "certificate")
        )
    return np.array(found.counts, np.float64)


def _host(values: torch.Tensor) -> np.ndarray:
    found: np.ndarray = values.detach().cpu().numpy()
    return found


def _largest(some: np.ndarray, others: np.ndarray) -> float:
    return float(np.abs(some - others).max())


def _relative(some: np.ndarray, others: np.ndarray) -> float:
    return float(np.linalg.norm(some - others) / np.linalg.norm(others))
