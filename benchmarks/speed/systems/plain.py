"""Textbook PyTorch: each rule as a reader of its paper would write it in a few lines of whole-array operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks.speed.contestant import Job
from benchmarks.speed.systems import endpoints
from benchmarks.speed.systems.defending import diffpure
from benchmarks.speed.systems.network import SmallNetwork, read_scans, train
from benchmarks.speed.systems.updates import opened

torch.set_num_threads(1)


def rule(compute: Callable[[torch.Tensor, int, float], torch.Tensor]) -> Job:
    """A rule of updates (n, d), f and a radius."""

    @contextmanager
    def job(deltas: str, f: int, radius: float) -> Iterator[Callable[[], torch.Tensor]]:
        rows = torch.from_numpy(opened(deltas))
        yield lambda: compute(rows, f, radius)

    return job


def trimmed_mean(rows: torch.Tensor, f: int, radius: float) -> torch.Tensor:
    return rows.sort(dim=0).values[f : len(rows) - f].mean(dim=0)


def median(rows: torch.Tensor, f: int, radius: float) -> torch.Tensor:
    return trimmed_mean(rows, (len(rows) - 1) // 2, radius)


def best_by_krum(rows: torch.Tensor, f: int) -> torch.Tensor:
    distances = torch.cdist(rows, rows).square()
    scores = distances.sort(dim=1).values[:, 1 : len(rows) - f - 1].sum(dim=1)
    return scores.argsort()


def geometric_median(rows: torch.Tensor, f: int, radius: float) -> torch.Tensor:
    point = rows.mean(dim=0)
    for _ in range(100):
        pulls = 1 / (rows - point).norm(dim=1).clamp(min=1e-12)
        moved = pulls @ rows / pulls.sum()
        if (moved - point).norm() <= 1e-6 * moved.norm():
            return moved
        point = moved
    return point


def centered_clipping(rows: torch.Tensor, f: int, radius: float) -> torch.Tensor:
    return (rows * (radius / rows.norm(dim=1)).clamp(max=1)[:, None]).mean(dim=0)


def fltrust(rows: torch.Tensor, f: int, radius: float) -> torch.Tensor:
    root = rows[0]
    trust = torch.nn.functional.cosine_similarity(rows, root[None], dim=1).relu()
    alike = rows * (root.norm() / rows.norm(dim=1))[:, None]
    return trust @ alike / trust.sum()


def nnm(rows: torch.Tensor, f: int, radius: float) -> torch.Tensor:
    nearest = torch.cdist(rows, rows).argsort(dim=1)[:, : len(rows) - f]
    return torch.stack([rows[some].mean(dim=0) for some in nearest])


JOBS: dict[str, Job] = {
    "mean": rule(lambda rows, f, radius: rows.mean(dim=0)),
    "median": rule(median),
    "trimmed_mean": rule(trimmed_mean),
    "krum": rule(lambda rows, f, radius: rows[best_by_krum(rows, f)[0]].clone()),
    "multi_krum": rule(lambda rows, f, radius: rows[best_by_krum(rows, f)[: len(rows) - f]].mean(dim=0)),
    "geometric_median": rule(geometric_median),
    "centered_clipping": rule(centered_clipping),
    "fltrust": rule(fltrust),
    "nnm": rule(nnm),
}


@contextmanager
def rounds(scans: str) -> Iterator[Callable[[], None]]:
    """Federated averaging as a loop: load the weights, train a hospital, add up, next."""
    hospitals, model = read_scans(scans), SmallNetwork()
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def one_round() -> None:
        nonlocal weights
        total = {name: torch.zeros_like(value) for name, value in weights.items()}
        for images, labels in hospitals:
            model.load_state_dict(weights)
            train(model, images, labels)
            for name, value in model.state_dict().items():
                total[name] += value
        weights = {name: value / len(hospitals) for name, value in total.items()}

    yield one_round


JOBS |= {"rounds": rounds, "diffpure": diffpure, "uvicorn": endpoints.uvicorn, "ray_serve": endpoints.ray_serve}
