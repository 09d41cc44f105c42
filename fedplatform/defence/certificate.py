"""Certified answers: a class, and a radius within which no perturbation at all can change it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch

Answer = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Certificate:
    """What randomised smoothing proves about one scan.

    Under Gaussian noise of ``sigma`` the base classifier answers ``label`` with probability at least ``lower_bound``,
    so the smoothed one answers ``label`` for every picture within an L2 distance of ``radius``, both in pixel units;
    the statement is false with probability at most 1 - ``confidence``, over the draw of the noise. ``label`` is None
    and ``radius`` 0 where the smoothed classifier abstains. ``counts`` (num_classes) are the answers to the ``samples``
    noisy copies that the bound rests on.
    """

    label: int | None
    radius: float
    lower_bound: float
    counts: tuple[int, ...]
    samples: int
    sigma: float
    confidence: float


def certify(
    answer: Answer,
    image: torch.Tensor,
    *,
    sigma: float,
    num_classes: int,
    select: int = 32,
    samples: int = 256,
    confidence: float = 0.999,
    batch: int = 64,
    generator: torch.Generator,
) -> Certificate:
    """Certify one scan by randomised smoothing (CERTIFY of Cohen, Rosenfeld and Kolter, ICML 2019).

    ``image`` is (c, h, w) in [0, 1]. ``answer`` gives labels (m,) to scans (m, c, h, w) that carry Gaussian noise of
    ``sigma`` and are not clipped; a denoiser inside it makes this denoised smoothing (Carlini et al., ICLR 2023), at
    the step that :func:`step_of` finds. It must answer each scan by itself: the proof needs independent copies.
    ``select`` copies choose the class and ``samples`` others bound its probability, both numbers fixed beforehand, for
    to stop early or to reuse the first copies would void the confidence. The radius is at most
    sigma * Phi^-1((1 - confidence)^(1 / samples)), reached where all copies agree.

    Raises ValueError where sigma is not positive, confidence not between 0 and 1, no copies are asked for, or
    ``answer`` gives anything but m labels from 0 to num_classes - 1.
    """
    if not sigma > 0:
        raise ValueError(f"certify needs sigma > 0, got {sigma}")
    if not 0 < confidence < 1:
        raise ValueError(f"certify needs a confidence between 0 and 1, got {confidence}")
    if min(select, samples, batch) < 1:
        raise ValueError(f"certify needs copies, got select={select}, samples={samples}, batch={batch}")

    def count(copies: int) -> torch.Tensor:
        """How often each class is answered to this many fresh copies: (num_classes,) int64."""
        counts = torch.zeros(num_classes, dtype=torch.int64)
        for start in range(0, copies, batch):
            # Copy by copy, so that the batch size does not change the draw.
            many = min(batch, copies - start)
            noise = torch.stack([torch.randn(image.shape, generator=generator) for _ in range(many)])
            labels = answer(image + sigma * noise.to(image.device)).cpu()
            if labels.shape != (many,) or labels.min() < 0 or labels.max() >= num_classes:
                raise ValueError(f"answer must give {many} labels from 0 to {num_classes - 1}, got {labels}")
            counts += torch.bincount(labels, minlength=num_classes)
        return counts

    with torch.no_grad():
        chosen = int(count(select).argmax())
        counts = tuple(count(samples).tolist())
    lower_bound = clopper_pearson(counts[chosen], samples, confidence=confidence)
    certain = lower_bound > 0.5
    return Certificate(
        label=chosen if certain else None,
        radius=sigma * NormalDist().inv_cdf(lower_bound) if certain else 0.0,
        lower_bound=lower_bound,
        counts=counts,
        samples=samples,
        sigma=sigma,
        confidence=confidence,
    )


def clopper_pearson(successes: int, trials: int, *, confidence: float) -> float:
    """Exact one-sided lower bound of a probability from ``successes`` in ``trials`` (Clopper and Pearson, 1934)."""
    from scipy import special  # slow to import, and every hospital imports this module

    return float(special.betaincinv(successes, trials - successes + 1, 1 - confidence)) if successes else 0.0


def certified_accuracy(
    certificates: Sequence[Certificate], labels: Sequence[int] | np.ndarray, radii: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Share of scans that are certified with the right label to at least each radius; (r,) float64 for radii (r,).

    An abstention counts as an error. Raises ValueError where there are not as many labels as certificates, or none.
    """
    if len(certificates) != len(labels) or not certificates:
        raise ValueError(f"certified_accuracy got {len(certificates)} certificates and {len(labels)} labels")
    right = np.array([certificate.label == label for certificate, label in zip(certificates, labels, strict=True)])
    reached = np.array([certificate.radius for certificate in certificates])[:, None] >= np.asarray(radii)
    shares: np.ndarray = (right[:, None] & reached).mean(axis=0)
    return shares


def step_of(sigma: float, alphas_cumprod: torch.Tensor) -> int:
    """The diffusion step whose noise is nearest to ``sigma`` in [0, 1] pixel units (Carlini et al., section 3).

    A diffused scan is x_t / sqrt(abar_t) = x + sqrt((1 - abar_t) / abar_t) e with x = 2 * image - 1, so noise of sigma
    in the image is 2 * sigma in x. The answer is an index into ``alphas_cumprod`` (T,), falling; the denoiser wants
    sqrt(abar_t) * (2 * noisy - 1). Raises ValueError where even the last step has less noise: no network was trained
    to take that much off.
    """
    abar = alphas_cumprod.double()
    noise = ((1 - abar) / abar).sqrt()
    greatest = float(noise[-1])
    if not 0 < 2 * sigma <= greatest * (1 + 1e-6):
        raise ValueError(f"this diffusion covers sigma above 0 and up to {greatest / 2:.3f}, got {sigma}")
    return int((noise - 2 * sigma).abs().argmin())
