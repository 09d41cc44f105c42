"""What each way back from the noise keeps of robust accuracy, and what it costs: ``python -m benchmarks.samplers RUN``.

The same scans, attacked in the same way, go through the same network to the same depth and come back in one shot, by a
few steps, or as DiffPure does by every single one (DDPM, Nie et al., ICML 2022); the run's own classifier, which has
never seen a purified scan, answers. T0 leaves scans as they are, T2 attacks the classifier alone, T3 (BPDA) every
purifier for itself. The nearest neighbour among the training scans answers those of T0 and T2, too. Rows are written as
they come; started again, it goes on where it was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from sklearn.neighbors import KNeighborsClassifier

from fedplatform.core.seeding import torch_generator
from fedplatform.core.statistics import wilson
from fedplatform.defence import (
    Ddim,
    Ddpm,
    DefendedClassifier,
    DiffusionPurifier,
    DpmSolver,
    FreshNoise,
    OneShot,
    Sampler,
)
from fedplatform.defence.presets import HospitalParts
from fedplatform.defence.threats import Budget, Victim, attack_hospital
from fedplatform.experiments.baselines import look_up
from fedplatform.experiments.defence.attack import spread_evenly
from fedplatform.experiments.defence.load import DefendedRun

WAYS: dict[str, Sampler | None] = {
    "none": None,
    "one shot": OneShot(),
    "DPM-Solver++, 3": DpmSolver(3),
    "DDIM, 5": Ddim(5),
    "DDPM, every step": Ddpm(),
}
NEAREST = "nearest neighbour"
HARDEST = "T3"
KEY = ["way", "depth", "tier", "epsilon", "hospital_id"]


@click.command(context_settings={"max_content_width": 120})
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path, exists=True))
@click.option("--scans", default=200, show_default=True, help="test scans for T0 and T2, over all hospitals")
@click.option(
    "--hard-scans", default=40, show_default=True, help="the same for T3, which costs every step a purification"
)
@click.option("--depths", default="75,150", show_default=True, help="noise steps of 1000")
@click.option("--epsilon", default=8 / 255, show_default="8/255", help="of a pixel in [0, 1]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/results/samplers.csv"), show_default=True)
def main(run_folder: Path, scans: int, hard_scans: int, depths: str, epsilon: float, out: Path) -> None:
    """Measure every way back on a run whose defence is trained."""
    torch.set_num_threads(1)
    run = DefendedRun(run_folder)
    rows = pd.read_csv(out).to_dict("records") if out.is_file() else []
    known = {tuple(row[name] for name in KEY) for row in rows}
    tasks = [
        (way, depth, tier, hospital_id)
        for tier in ("T0", "T2", HARDEST)
        for depth in map(int, depths.split(","))
        for way in (NEAREST, *WAYS)
        for hospital_id in run.tested
        if way != NEAREST or tier != HARDEST  # a look-up has no gradient
    ]
    neighbours = look_up(run.shards)
    for number, (way, depth, tier, hospital_id) in enumerate(tasks):
        strength = 0.0 if tier == "T0" else round(epsilon, 4)
        key = (way, depth if WAYS.get(way) is not None else 0, tier, strength, hospital_id)
        if key in known:
            continue
        known.add(key)
        parts = run.hospital(hospital_id)
        chosen = spread_evenly(len(parts.test[1]), (hard_scans if tier == HARDEST else scans) // len(run.tested))
        right, cpu_s = answered(
            parts, neighbours if way == NEAREST else WAYS[way], depth, tier, epsilon, chosen, seed=run.experiment.seed
        )
        heading = dict(zip(KEY, key, strict=True))
        rows.append({**heading, "scans": len(chosen), "right": right, "cpu_ms": round(1000 * cpu_s / len(chosen), 3)})
        out.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(out, index=False)
        click.echo(f"{number + 1}/{len(tasks)}  {tier}, depth {key[1]}, {way}, {hospital_id}: {right} of {len(chosen)}")
    click.echo("\n".join(markdown(pd.DataFrame(rows))))


def answered(
    parts: HospitalParts,
    way: Sampler | KNeighborsClassifier | None,
    depth: int,
    tier: str,
    epsilon: float,
    chosen: np.ndarray,
    *,
    seed: int,
) -> tuple[int, float]:
    """How many of one hospital's ``chosen`` test scans are answered rightly, and CPU seconds of all answers."""
    images, labels = parts.test[0][chosen], parts.test[1][chosen]
    defended = parts.defended("no_defence")
    if not (way is None or isinstance(way, KNeighborsClassifier)):
        through = parts.through(DiffusionPurifier(parts.network, OneShot()), depth=depth, classifier=parts.classifier)
        defended = replace(through, purifier=DiffusionPurifier(parts.network, way))
    attacked = attack_hospital(
        tier,
        Victim(defended, parts.classifier),
        images,
        labels,
        epsilon=epsilon,
        budget=Budget(steps=20, eot=1),
        generator=torch_generator(seed, "samplers", tier, parts.hospital_id),
    )
    begun = time.process_time()
    if isinstance(way, KNeighborsClassifier):
        answers = torch.from_numpy(way.predict(attacked.flatten(1).numpy()))
    else:
        answers = _answers(defended, attacked, seed)
    return int((answers == labels).sum()), time.process_time() - begun


def _answers(defended: DefendedClassifier, images: torch.Tensor, seed: int) -> torch.Tensor:
    with torch.no_grad():
        answers: torch.Tensor = defended.logits(images, noise=FreshNoise(torch_generator(seed, "judge"))).argmax(dim=1)
    return answers


def markdown(rows: pd.DataFrame) -> Iterator[str]:
    """A row a way and depth, a column a tier."""
    yield "| way back | depth | T0 | T2 | T3 | CPU ms a scan |"
    yield "|---|---:|---:|---:|---:|---:|"
    for (depth, way), found in rows.groupby(["depth", "way"], sort=False):
        cells = []
        for tier in ("T0", "T2", HARDEST):
            sums = found[found["tier"] == tier][["right", "scans"]].sum()
            if not sums["scans"]:
                cells.append("")
                continue
            share = sums["right"] / sums["scans"]
            low, high = wilson(share, sums["scans"])
            cells.append(f"{100 * share:.1f} ({100 * low:.0f}–{100 * high:.0f})")
        cost = found[found["tier"] != HARDEST]["cpu_ms"].median()
        yield f"| {way} | {depth or '–'} | {' | '.join(cells)} | {cost:.3g} |"


if __name__ == "__main__":
    main()
