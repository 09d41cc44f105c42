"""What trust costs beside Multi-Krum on the same updates: fingerprint, scorers, aggregate; root passes left out.

    python -m benchmarks.trust --hospitals 10 --parameters 11000000

CPU seconds of this process, medians over rounds in which the parts take turns. What runs the model on root scans (the
coalitions of the Shapley values and the slopes of the descent) costs what the model costs and is not counted here;
`aggregate_seconds` in a run's rounds.parquet counts everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import numpy as np
import torch

from fedplatform.aggregation import MultiKrum
from fedplatform.aggregation.geometry import combine, shrinkage
from fedplatform.messages import Evidence
from fedplatform.seeding import torch_generator
from fedplatform.trust.descent import Descent
from fedplatform.trust.dual_attention import DualAttention
from fedplatform.trust.fingerprint import Fingerprints, measure, relative_sketches, take
from fedplatform.trust.robust import RobustScores
from fedplatform.trust.scorer import Lesson
from fedplatform.trust.update_vae import UpdateVae


class FreeRoot:
    """A root set whose slope costs nothing, so that only the arithmetic around it is timed."""

    def __init__(self, slope: torch.Tensor) -> None:
        self._slope = slope

    def gradient(self, step: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return self._slope


@click.command(help=__doc__, context_settings={"max_content_width": 120})
@click.option("--hospitals", default=10, show_default=True)
@click.option("--parameters", default=11_000_000, show_default=True)
@click.option("--repeats", default=7, show_default=True)
def main(hospitals: int, parameters: int, repeats: int) -> None:
    torch.set_num_threads(1)
    n, generator = hospitals, torch_generator(0, "benchmark of trust")
    root_delta = torch.randn(parameters, generator=generator)
    deltas = torch.randn(n, parameters, generator=generator) + root_delta
    evidence = Evidence(
        tuple(map(str, range(n))), torch.full((n,), 100), torch.zeros(parameters), torch.Generator(), 1, root_delta
    )
    vae = UpdateVae()
    state = vae.fit(relative_sketches(measure(deltas, root_delta)), generator=generator, steps=5)

    def fingerprint() -> Fingerprints:
        measured = measure(deltas, root_delta)
        errors = vae.errors(state, relative_sketches(measured))
        return take(measured, hospital_ids=evidence.hospital_ids, errors=errors, shapley=np.zeros(n))

    taken = fingerprint()
    lies = np.arange(n) < 3
    skill = DualAttention().prepare([Lesson(taken, lies, "none")] * 4, generator=generator)
    weights, reputation = np.full(n, 1 / n), np.full(n, 0.6)
    norms = taken.values[:, 3]
    parts: dict[str, Callable[[], object]] = {
        "multi_krum": lambda: MultiKrum(f=(n - 3) // 2)(deltas, evidence),
        "fingerprint": fingerprint,
        "scorer by rule": lambda: RobustScores().score(taken, reputation, None),
        "scorer network": lambda: DualAttention().score(taken, reputation, skill),
        "clip and combine": lambda: combine(weights * shrinkage(norms, float(np.median(norms))), deltas),
        "descent, 3 steps": lambda: Descent()(weights, np.ones(n), deltas, FreeRoot(root_delta)),  # type: ignore[arg-type]
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats):
        for name, part in parts.items():
            started = time.process_time()
            part()
            seconds[name].append(time.process_time() - started)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    click.echo(f"{n} hospitals, {parameters:,} parameters, median of {repeats}, one thread")
    for name, value in median.items():
        click.echo(f"{name:18} {value:8.3f} s {value / median['multi_krum']:6.2f} x multi_krum")
    together = sum(median[name] for name in ("fingerprint", "scorer by rule", "clip and combine"))
    click.echo(f"{'together':18} {together:8.3f} s {together / median['multi_krum']:6.2f} x multi_krum")


if __name__ == "__main__":
    main()
