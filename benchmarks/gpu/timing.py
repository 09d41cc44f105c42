"""How long every part takes on a device, and training a large network beside a plain PyTorch loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from torch.nn import functional

from benchmarks.gpu.agreement import attacked, certified, trained
from benchmarks.gpu.work import Work
from fedplatform.core.seeding import torch_generator
from fedplatform.data.device_pixels import DevicePixels, Pictures
from fedplatform.learning.training import Trainer

LIMIT = 1.1  # times the plain loop


@dataclass(frozen=True)
class Timing:
    """Median seconds of a part, and what they are of."""

    part: str
    seconds: float
    what: str


def parts(work: Work) -> Iterator[Timing]:
    """Every part that computes with a network."""
    sizes, trainer = work.sizes, work.trainer()
    weights, personal = trainer.initial_weights, dict(trainer.initial_personal)
    hospital, images = work.hospital, work.images[0]
    scans = f"{len(hospital.training_labels)} scans of {sizes.side} pixels"
    steps = np.outer(np.linspace(-0.5, 0.5, 16, dtype=np.float32), work.root.delta)

    def passage() -> None:
        with torch.no_grad(), work.compute.computing():
            work.defended.passage(images)

    timed: dict[str, tuple[Callable[[], object], str]] = {
        "training, float32": (lambda: trained(work), f"an epoch of {scans}"),
        "settling batch normalisation": (
            lambda: trainer.settle(weights, personal, hospital.training_images, hospital.training_labels),
            "128 scans",
        ),
        "predictions": (lambda: trainer.predict(weights, personal, hospital.training_images), scans),
        "root losses": (lambda: work.root.losses(steps), f"{len(steps)} steps on {len(images)} root scans"),
        "root gradient": (lambda: work.root.gradient(work.root.delta), f"{len(images)} root scans"),
        "the whole defence": (passage, f"{len(images)} scans, all of them purified"),
        "PGD": (lambda: attacked(work), f"{len(images)} scans, 5 steps"),
        "certificate": (lambda: certified(work), "232 noisy copies of a scan"),
    }
    for name, (run, what) in timed.items():
        yield Timing(name, _seconds(work, run), what)
    large = work.large(work.compute)
    vector = large.initial_weights
    large.load(vector, {})
    many = f"{large.layout.size:,} weights"
    yield Timing("weights to the device", _seconds(work, lambda: large.load(vector, {})), many)
    yield Timing("weights to the host", _seconds(work, lambda: large.layout.flatten(large.model)), many)


def against_a_plain_loop(work: Work) -> tuple[Timing, Timing]:
    """Training the large network in bf16: here, and by a loop as tutorials have it, taking turns."""
    sizes = work.sizes
    compute = replace(work.compute, precision="bf16")
    trainer = work.large(compute)
    images, labels = work.resident(sizes.steps * sizes.batch)
    ours, plain = [], []
    for _ in range(sizes.repeats + 1):  # the first is the warm-up
        ours.append(_once(work, lambda: _fit(trainer, images, labels)))
        plain.append(_once(work, lambda: plain_loop(trainer, images, labels)))
    what = f"a step of {sizes.network}, {sizes.batch} scans of {sizes.large_side} pixels, bf16"
    return (
        Timing("training", median(ours[1:]) / sizes.steps, what),
        Timing("plain loop", median(plain[1:]) / sizes.steps, what),
    )


def plain_loop(trainer: Trainer, images: Pictures, labels: np.ndarray) -> float:
    """An epoch of SGD with momentum, the scans on the device; the trainer lends its network and settings alone."""
    compute, setting, model = trainer.compute, trainer.training, trainer.model
    there = images.there if isinstance(images, DevicePixels) else torch.from_numpy(np.asarray(images))
    answers = torch.from_numpy(labels).to(compute.place)
    model.train()
    optimiser = torch.optim.SGD(
        model.parameters(), lr=setting.learning_rate, momentum=setting.momentum, weight_decay=setting.weight_decay
    )
    total = torch.zeros((), device=compute.place)
    for rows in torch.randperm(len(labels)).to(compute.place).split(setting.batch_size):
        scans = (there[rows].float() / 255).contiguous(memory_format=torch.channels_last)
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(compute.place.type, torch.bfloat16):
            loss = functional.cross_entropy(model(scans), answers[rows])
        loss.backward()
        optimiser.step()
        total += loss.detach()
    return float(total)


def waits_of_a_step(work: Work) -> int:
    """How often a step of training waits for a CUDA device, as PyTorch itself counts; 0 on others, which tell nothing.

    Raises RuntimeError at the first wait.
    """
    if work.compute.place.type != "cuda":
        return 0
    trainer = work.large(replace(work.compute, precision="bf16"))
    images, labels = work.resident(6 * work.sizes.batch)
    steps = 0

    def watch() -> bool:
        # The first steps allocate, the last ones are followed by the fetching of weights and losses.
        nonlocal steps
        steps += 1
        torch.cuda.set_sync_debug_mode("error" if 2 < steps < 6 else "default")
        return False

    try:
        _fit(trainer, images, labels, watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return 0


def _fit(
    trainer: Trainer, images: Pictures, labels: np.ndarray, should_stop: Callable[[], bool] = lambda: False
) -> object:
    return trainer.fit(
        trainer.initial_weights,
        dict(trainer.initial_personal),
        images=images,
        labels=labels,
        groups=np.arange(len(labels)),
        round_number=1,
        generator=torch_generator(0, "benchmark"),
        should_stop=should_stop,
    )


def _seconds(work: Work, run: Callable[[], object]) -> float:
    """Median of several runs after one that warms up."""
    return median([_once(work, run) for _ in range(work.sizes.repeats + 1)][1:])


def _once(work: Work, run: Callable[[], object]) -> float:
    _finish(work)
    began = time.perf_counter()
    run()
    _finish(work)
    return time.perf_counter() - began


def _finish(work: Work) -> None:
    if work.compute.place.type == "cuda":
        torch.cuda.synchronize(work.compute.place)
