"""Distances between images, and the nearest allowed image: within epsilon of the scan and inside [0, 1]."""

from __future__ import annotations

from typing import Literal

import torch

Norm = Literal["linf", "l2"]


def norm_of(deltas: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Size (n,) of each of n perturbations (n, c, h, w)."""
    order = float("inf") if norm == "linf" else 2.0
    sizes: torch.Tensor = torch.linalg.vector_norm(deltas.flatten(1), ord=order, dim=1)
    return sizes


def each(values: torch.Tensor) -> torch.Tensor:
    """One value a scan (n,), shaped (n, 1, 1, 1) to multiply images."""
    return values.view(-1, 1, 1, 1)


def project(candidates: torch.Tensor, images: torch.Tensor, epsilon: float, norm: Norm = "linf") -> torch.Tensor:
    """Candidates (n, c, h, w) moved to within ``epsilon`` of their images and into [0, 1].

    Exact up to float32 rounding. In L2 the ball comes first: the box then only moves pixels towards the scan.
    """
    if norm == "linf":
        candidates = torch.clamp(candidates, images - epsilon, images + epsilon)
    else:
        deltas = candidates - images
        shrink = (epsilon / norm_of(deltas, norm).clamp_min(1e-12)).clamp_max(1)
        candidates = images + deltas * each(shrink)
    return candidates.clamp(0, 1)
