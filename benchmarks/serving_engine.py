"""Eager PyTorch against ONNX Runtime for every network of the served defence: CPU milliseconds of one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.serving_engine

The networks are the default ones of ``br35h_robust`` and ``defend`` at 64 pixels, untrained: how fast they are does not
depend on their weights. The two engines take turns, and the median of each is shown.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch

from fedplatform.defence import (
    DefendedClassifier,
    DepthMap,
    Detector,
    DiffusionPurifier,
    Fusion,
    Gate,
    KeyedNoise,
    OneShot,
)
from fedplatform.defence.detector import PARTS
from fedplatform.learning.models import Classifier, Experts, MaskedAutoencoder, NoisePredictor, SmallCnn
from fedplatform.serving.onnx_engine import exported, on_onnx_runtime

DEPTH, COPIES = 150, 8


@click.command()
@click.option("--size", default=64, show_default=True)
@click.option("--batches", default="1,8,16", show_default=True)
@click.option("--repeats", default=40, show_default=True)
def main(size: int, batches: str, repeats: int) -> None:
    """Print a Markdown table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    eager = defence(size)
    example = torch.rand(1, 1, size, size)
    start = time.perf_counter()
    made = exported(eager, example)
    click.echo(f"exported {len(made.models)} networks in {time.perf_counter() - start:.1f} s; left: {dict(made.left)}")
    start = time.perf_counter()
    onnx = on_onnx_runtime(eager, made.models)
    click.echo(f"loaded in {time.perf_counter() - start:.2f} s\n")
    click.echo(f"| network | batch | PyTorch ms | ONNX Runtime ms | times faster | largest difference |\n{'|---' * 6}|")
    for batch in map(int, batches.split(",")):
        images = torch.rand(batch, 1, size, size)
        for name, call in CALLS.items():
            first, second, difference = timed(call, images, eager, onnx, repeats)
            click.echo(f"| {name} | {batch} | {first:.2f} | {second:.2f} | {first / second:.1f} | {difference:.1e} |")


def defence(size: int) -> DefendedClassifier:
    """The defence of a run, as far as its cost goes: every scan is flagged and purified at one depth."""
    form = {"channels": 1, "num_classes": 2, "size": size}
    networks = [
        Experts()(**form),
        MaskedAutoencoder()(**form),
        SmallCnn(width=8)(**form),
        NoisePredictor(t_max=260)(**form),
    ]
    classifier, autoencoder, sensor, noise = (network.eval().requires_grad_(False) for network in networks)
    fusion = Fusion(dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 1.0))
    return DefendedClassifier(
        Classifier(classifier).eval(),
        DiffusionPurifier(noise, OneShot()),  # type: ignore[arg-type]
        Gate(-1e9, usual_depth=0, flagged_depth=DepthMap(DEPTH, DEPTH, 0.0, 0.0)),
        KeyedNoise(b"benchmark"),
        detector=Detector(autoencoder, Classifier(sensor).eval(), fusion),
        probe_depth=100,
        copies=(0,) * COPIES,
    )


Call = Callable[[DefendedClassifier, torch.Tensor], torch.Tensor]


def denoised(defended: DefendedClassifier, images: torch.Tensor) -> torch.Tensor:
    assert isinstance(defended.purifier, DiffusionPurifier)
    return defended.purifier.network.denoise(2 * images - 1, torch.full((len(images),), DEPTH))


def patch_errors(defended: DefendedClassifier, images: torch.Tensor) -> torch.Tensor:
    assert defended.detector is not None
    return defended.detector.patch_errors(images)


def sensed(defended: DefendedClassifier, images: torch.Tensor) -> torch.Tensor:
    assert defended.detector is not None
    return defended.detector.sensor(images)


CALLS: dict[str, Call] = {
    "classifier": lambda defended, images: defended.classifier(images),
    "autoencoder": patch_errors,
    "sensor": sensed,
    "noise predictor": denoised,
    "examine (every scan)": lambda defended, images: defended.examine(images).scores,
    f"the whole, flagged ({COPIES} copies)": lambda defended, images: defended.passage(images).logits,
}


def timed(
    call: Call, images: torch.Tensor, eager: DefendedClassifier, onnx: DefendedClassifier, repeats: int
) -> tuple[float, float, float]:
    """Median milliseconds of both, and how far their answers are apart."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        difference = float((call(eager, images) - call(onnx, images)).abs().max())
        for _ in range(repeats):
            for defended, into in zip((eager, onnx), seconds, strict=True):
                start = time.process_time()
                call(defended, images)
                into.append(time.process_time() - start)
    first, second = (1000 * statistics.median(taken) for taken in seconds)
    return first, second, difference


if __name__ == "__main__":
    main()
