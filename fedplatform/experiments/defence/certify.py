"""Certificates of a run's defence: a radius within which nothing can change the answer to a scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from fedplatform.core.files import write_whole
from fedplatform.core.seeding import torch_generator
from fedplatform.core.workers import as_they_finish, workers
from fedplatform.defence import step_of
from fedplatform.experiments.defence.attack import Place, computing_on, opened, parts_of, spread_evenly
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.experiments.experiment import ExperimentError


def certify_scans(
    path: Path,
    *,
    sigmas: Sequence[float],
    scans: int,
    samples: int,
    jobs: int,
    shards: Path | None = None,
    device: str = "auto",
    observer: Callable[[int, int], None] = lambda *_: None,
) -> pd.DataFrame:
    """Certify test scans of all hospitals and leave ``certificates.parquet``: one row a scan and sigma.

    Columns: hospital_id, row, label, answer (-1 for none), radius, sigma, samples, confidence, seed.
    """
    compute = computing_on(device)
    run = DefendedRun(path, shards=shards)
    place = Place(path, run.shards, compute)
    network = run.hospital(run.tested[0]).network
    if not sigmas:
        raise ExperimentError("a certificate needs at least one sigma")
    try:
        for sigma in sigmas:
            step_of(sigma, network.abar[: network.t_max + 1])
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    asked = list(dict.fromkeys((hospital, sigma) for sigma in sigmas for hospital in run.tested))
    each = -(-scans // len(run.tested))
    found: dict[tuple[str, float], list[dict[str, object]]] = {}
    frame = pd.DataFrame()
    with workers(jobs) as pool:
        for task, rows in as_they_finish(
            asked, lambda task: pool.submit(_certify, place, *task, each, samples), jobs=jobs
        ):
            found[task] = rows
            observer(len(found), len(asked))
            frame = pd.DataFrame([row for task in asked for row in found.get(task, [])])
            write_whole(path / "certificates.parquet", lambda file, frame=frame: frame.to_parquet(file, index=False))  # type: ignore[misc]
    return frame


def _certify(place: Place, hospital_id: str, sigma: float, scans: int, samples: int) -> list[dict[str, object]]:
    run, parts = opened(place), parts_of(place, hospital_id)
    defended = parts.defended("full")
    rows: list[dict[str, object]] = []
    for number in spread_evenly(len(parts.test[1]), scans).tolist():
        row = int(parts.test_rows[number])
        generator = torch_generator(run.experiment.seed, "certificate", row)
        with place.compute.computing():
            found = defended.certify(parts.test[0][number], sigma=sigma, samples=samples, generator=generator)
        rows.append(
            {
                "hospital_id": hospital_id,
                "row": row,
                "label": int(parts.test[1][number]),
                "answer": -1 if found.label is None else found.label,
                "radius": found.radius,
                "sigma": sigma,
                "samples": samples,
                "confidence": found.confidence,
                "seed": run.experiment.seed,
            }
        )
    return rows


def certified_accuracy(certificates: pd.DataFrame, radii: Sequence[float]) -> pd.DataFrame:
    """Share of scans whose right class is certified to each radius; a row a sigma, a column a radius."""
    rows = []
    for sigma, group in certificates.groupby("sigma"):
        right = group["answer"] == group["label"]
        shares = {f"{radius:g}": (right & (group["radius"] >= radius)).mean() for radius in radii}
        rows.append({"sigma": sigma, "n": len(group), "samples": group["samples"].iloc[0], **shares})
    return pd.DataFrame(rows)
