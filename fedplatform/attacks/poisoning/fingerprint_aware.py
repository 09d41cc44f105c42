"""The adaptive attack on OptiGradTrust: updates as harmful as the six features of an honest one allow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from fedplatform.attacks.poisoning.attack import Situation
from fedplatform.attacks.poisoning.honest_statistics import ERROR, NORM, PEER, RIDGE, ROOT, SIGN, HonestStatistics
from fedplatform.attacks.poisoning.moments import dot, mean_of, products_of
from fedplatform.core.vectors import column_blocks, gram_matrix, one_blas_thread

MARGIN = 0.95  # how far towards the edge of the band a shape is sought; float32 and the signs take the rest
STEPS = 9  # along each side of the lattice on which a shape is sought
CORRECTIONS = 12  # of the signs and the shape in turn; one or two are usually enough


@dataclass(frozen=True)
class FingerprintAware:
    """The attacker who knows OptiGradTrust's fingerprint; of this project, adaptive as Tramèr et al. (2020) ask for.

    Every attacker sends an update of its own whose six features lie within ``width`` MADs of the honest median, as far
    as the attackers can tell (:class:`~fedplatform.attacks.poisoning.honest_statistics.HonestStatistics` says what
    stands in for the root set they do not see), and no two attackers are more alike or less alike than two honest
    hospitals. Under these bounds the updates have the lowest inner product with the honest mean, and share as much as
    they can of the direction -sign(mean).

    The bounds leave room only as far as honest updates differ, so it harms less than attacks that do not hide from the
    fingerprint (docs/results.md has the figures). Where the attackers find no updates that keep all bounds (few
    coordinates, fewer than six honest hospitals, or less than two more of them than attackers), they send what breaks
    them least.
    """

    width: float = 2.0

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"FingerprintAware needs width > 0, got {self.width}")

    def collude(self, honest: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the honest updates (h, d), h >= 3, to what each attacker sends (num_byzantine, d).

        A mean of zero has no direction back, and one that is not finite none at all; either is sent as it is.
        """
        if len(honest) < 3:
            raise ValueError(f"FingerprintAware needs at least 3 honest updates for their spread, got {len(honest)}")
        with one_blas_thread():
            mean = mean_of(honest)
            if not 0 < dot(mean, mean) < math.inf:
                return mean.to(honest.dtype).repeat(situation.num_byzantine, 1)
            statistics = HonestStatistics.of(honest, width=self.width)
            shape = most_harmful_shape(statistics, situation.num_byzantine)
            forged = drafts(statistics, situation)
            least, kept = math.inf, forged
            for _ in range(CORRECTIONS):
                take_shape(forged, statistics, shape)
                settle_signs(forged, statistics)
                strain = statistics.strain_of(forged)
                if strain <= 1:
                    return forged
                if strain < least:
                    least, kept = strain, forged.clone()
            return kept


@dataclass(frozen=True)
class Shape:
    """What all forged updates have in common; all their features but the sign agreement follow from it.

    Each has length ``norm`` and the cosines ``cosine`` and ``tilt`` to the two common directions of the honest ones.
    ``outside``, 0 to 1, is the share of its length outside their span. ``together``, above -1/(m - 1) for m of
    them, is the cosine of any two in all that is not along the common directions.
    """

    norm: float
    cosine: float
    tilt: float
    outside: float
    together: float


def most_harmful_shape(statistics: HonestStatistics, num_byzantine: int) -> Shape:
    """Of all shapes on a lattice that keep the bounds, the one with the lowest inner product with the honest mean.

    Of several such, one whose updates have most in common. The signs are left out: they can be settled afterwards.
    Where no shape keeps the bounds, it is the one that breaks them least.
    """
    band = statistics.middle[:, None] + statistics.tolerance[:, None] * np.linspace(-MARGIN, MARGIN, STEPS)
    tilts = statistics.common_cosines[1]
    norm, cosine, error, tilt, peers = np.meshgrid(
        band[NORM].clip(statistics.tolerance[NORM]),
        band[ROOT].clip(-1, 1),
        band[ERROR],
        np.linspace(tilts.min(), tilts.max(), STEPS),
        band[PEER],
        indexing="ij",
    )
    rest = (1 - cosine**2 - tilt**2).clip(0)
    to_honest = len(statistics.honest) * np.tensordot(statistics.common_cosines.mean(axis=1), [cosine, tilt], axes=1)
    others, together = num_byzantine - 1, np.zeros_like(rest)
    if others:  # the attackers' cosine to each other makes up for what theirs to the honest lacks
        pairs = (peers * (len(statistics.honest) + others) - to_honest) / others
        together = np.divide(pairs - 1 + rest, rest, out=together, where=rest > 0).clip(-1 / num_byzantine, 1)
    pairs = 1 - rest + together * rest
    peers = (to_honest + others * pairs) / (len(statistics.honest) + others)
    harm = norm * cosine * statistics.length
    error = error.clip(0, norm * np.sqrt(rest))
    strain = statistics.strain(
        np.stack([error, cosine, peers, norm, np.full_like(norm, statistics.middle[SIGN]), harm], axis=-1)
    )
    if others:
        strain = np.maximum(strain, statistics.pair_strain(pairs))
    hidden = np.flatnonzero(strain <= max(MARGIN + 1e-9, strain.min()))
    best = hidden[np.lexsort((-together.flat[hidden], harm.flat[hidden]))[0]]
    return Shape(
        norm=float(norm.flat[best]),
        cosine=float(cosine.flat[best]),
        tilt=float(tilt.flat[best]),
        outside=float(error.flat[best] / norm.flat[best]),
        together=float(together.flat[best]),
    )


def drafts(statistics: HonestStatistics, situation: Situation) -> torch.Tensor:
    """Made-up updates (num_byzantine, d): every coordinate from an honest hospital drawn anew, then back by sign(mean).

    So a coordinate that is large, or that stays as it is, in honest updates is so in these.
    """
    h, d = statistics.honest.shape
    forged = torch.empty(situation.num_byzantine, d)
    back = statistics.middle[NORM] / d**0.5 * statistics.mean.sign()
    for row in forged:
        chosen = torch.randint(h, (1, d), generator=situation.generator)
        row.copy_(statistics.honest.gather(0, chosen)[0] - back)
    return forged


def take_shape(forged: torch.Tensor, statistics: HonestStatistics, shape: Shape) -> None:
    """Bring forged updates (m, d) to the shape, in place: all their features but the signs are then as wanted.

    Everything is a combination of the honest updates and the forged ones, so it is done on their inner products.
    """
    products = products_of(forged, statistics.honest)
    spanned = products @ statistics.inverse  # of the honest updates: the part of each forged one within their span
    outside = gram_matrix(forged.numpy()) - spanned @ products.T
    inside = spanned.copy()  # the same without what is along the two common directions
    for direction in statistics.common:
        inside -= np.outer(inside @ statistics.gram @ direction, direction)
    m = len(forged)
    wanted = (1 - shape.together) * np.eye(m) + shape.together
    rounding = RIDGE * float(np.trace(outside) + np.trace(spanned @ products.T))
    mix_outside = shape.outside * _turned(outside, wanted, rounding)
    within = max(1 - shape.cosine**2 - shape.tilt**2 - shape.outside**2, 0) ** 0.5
    mix_inside = within * _turned(inside @ statistics.gram @ inside.T, wanted, rounding)
    weights = np.array([shape.cosine, shape.tilt]) @ statistics.common + mix_inside @ inside - mix_outside @ spanned
    for columns in column_blocks(forged.shape[1]):
        honest, block = (rows[:, columns].double().numpy() for rows in (statistics.honest, forged))
        forged[:, columns] = torch.from_numpy(shape.norm * (weights @ honest + mix_outside @ block))


def _turned(gram: np.ndarray, wanted: np.ndarray, rounding: float) -> np.ndarray:
    """The mixing matrix (m, m) that gives vectors with inner products ``gram`` the inner products ``wanted``.

    Vectors that depend on each other get the lengths alone.
    """
    mixing = _power(wanted, 0.5, 0.0) @ _power(gram, -0.5, rounding)
    lengths = np.sqrt(np.einsum("ij,jk,ik->i", mixing, gram, mixing).clip(0))
    stretched: np.ndarray = np.divide(mixing, lengths[:, None], out=np.zeros_like(mixing), where=lengths[:, None] > 0)
    return stretched


def _power(matrix: np.ndarray, exponent: float, rounding: float) -> np.ndarray:
    """A power of a symmetric matrix, zero along eigenvectors whose eigenvalue is not above ``rounding``."""
    values, vectors = np.linalg.eigh(matrix)
    real = values > rounding
    power: np.ndarray = (vectors[:, real] * values[real] ** exponent) @ vectors[:, real].T
    return power


def settle_signs(forged: torch.Tensor, statistics: HonestStatistics) -> None:
    """Turn the smallest coordinates of forged updates (m, d) round until the sign agreement is right, in place.

    The smallest, because turning them changes the other features least.
    """
    d = forged.shape[1]
    lowest, highest = (statistics.middle[SIGN] + side * MARGIN * statistics.tolerance[SIGN] for side in (-1, 1))
    positive = statistics.mean >= 0
    for row in forged:
        agrees = (row >= 0) == positive
        share = int(agrees.sum()) / d
        missing, surplus = math.ceil((lowest - share) * d), math.ceil((share - highest) * d)
        if max(missing, surplus) <= 0:
            continue
        turnable = ((agrees != (missing > 0)) & (row != 0)).nonzero()[:, 0]
        count = min(max(missing, surplus), len(turnable))
        row[turnable[row[turnable].abs().topk(count, largest=False).indices]] *= -1
