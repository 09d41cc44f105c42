"""A few scans on their way through attack and defence, for people to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from fedplatform.core.compute import Compute
from fedplatform.core.files import write_whole
from fedplatform.core.seeding import torch_generator
from fedplatform.defence.threats import Budget, Victim, attack_hospital
from fedplatform.experiments.defence.attack import spread_evenly
from fedplatform.experiments.defence.load import DefendedRun

CANDIDATES = 12  # test scans of each hospital that are looked at
SHOWN = 6
RESCUED = 4  # of those shown, at most, lest the pictures promise more than the table


def write_example_pictures(
    path: Path,
    *,
    defence: str,
    tier: str,
    epsilon: float,
    budget: Budget,
    shards: Path | None = None,
    device: str = "auto",
) -> Path:
    """Write ``pictures.npz`` into a run folder: scans that one tier attacks, and what a defence makes of them.

    First come scans that fooled the bare classifier and were caught and answered rightly, then others that fooled it;
    the page says of each what became of it. Arrays: clean, attacked, purified (m, c, h, w), anomaly (m, h, w), labels,
    answers_undefended, answers_defended, flagged, scores, thresholds, depths (m,), epsilon, tier, classes.
    """
    compute = Compute.of(device)
    run = DefendedRun(path, shards=shards, device=compute.place)
    found: list[dict[str, np.ndarray]] = []
    for number, hospital_id in enumerate(run.tested):
        if sum(len(part["labels"]) for part in found) >= 4 * SHOWN:
            break
        parts = run.hospital(hospital_id)
        neighbour = run.hospital(run.tested[(number + 1) % len(run.tested)])
        defended, bare = parts.defended(defence), parts.defended("no_defence")
        places = spread_evenly(len(parts.test[1]), CANDIDATES)
        images, labels = (part[torch.from_numpy(places)] for part in parts.test)
        with compute.computing():
            attacked = attack_hospital(
                tier,
                Victim.of(parts, neighbour, defended),
                images,
                labels,
                epsilon=epsilon,
                budget=budget,
                generator=torch_generator(run.experiment.seed, "exhibits", tier, hospital_id),
            )
        with torch.no_grad(), compute.computing():
            passage, before = defended.passage(attacked), bare.logits(attacked)
            anomaly = np.zeros((len(images), *images.shape[2:]), np.float32)
            if defended.detector is not None:
                anomaly = _anomaly(defended.detector.patch_errors(attacked), images.shape[2:])
        found.append(
            {
                "clean": images.cpu().numpy(),
                "attacked": attacked.cpu().numpy(),
                "purified": passage.purified.cpu().numpy(),
                "anomaly": anomaly,
                "labels": labels.cpu().numpy(),
                "answers_undefended": before.argmax(dim=1).cpu().numpy(),
                "answers_defended": passage.logits.argmax(dim=1).cpu().numpy(),
                "flagged": passage.flagged.cpu().numpy(),
                "scores": passage.scores.cpu().numpy(),
                "thresholds": np.full(len(images), defended.gate.threshold),
                "depths": passage.depth.cpu().numpy(),
            }
        )
    pooled = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    fooled = pooled["answers_undefended"] != pooled["labels"]
    caught = fooled & pooled["flagged"]
    rescued = caught & (pooled["answers_defended"] == pooled["labels"])
    best = np.flatnonzero(rescued)
    others = [place for place in np.argsort(~fooled, kind="stable") if not rescued[place]]
    order = np.array([*best[:RESCUED], *others, *best[RESCUED:]])[:SHOWN]
    kept = {name: values[order] for name, values in pooled.items()}
    kept |= {"epsilon": np.array(epsilon), "tier": np.array(tier), "classes": np.array(run.manifest.classes, dtype=str)}
    file = path / "pictures.npz"
    write_whole(file, lambda place: np.savez_compressed(place, **kept))
    return file


def _anomaly(errors: torch.Tensor, size: torch.Size) -> np.ndarray:
    """Patch errors (n, patches) as maps (n, h, w)."""
    side = round(errors.shape[1] ** 0.5)
    maps = functional.interpolate(errors.view(-1, 1, side, side), size=tuple(size), mode="nearest")
    found: np.ndarray = maps[:, 0].cpu().numpy()
    return found
