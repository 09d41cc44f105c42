"""What honest updates look like to attackers who hide among them: OptiGradTrust's six features, without a root set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedplatform.attacks.poisoning.moments import dot, mean_of, products_of
from fedplatform.core.vectors import cosines_from, gram_matrix

ERROR, ROOT, PEER, NORM, SIGN, SHAPLEY = range(6)
ROUNDING = 1e-5  # a spread below it, relative to the size of the feature, is taken for rounding
RIDGE = 1e-12  # added to the inner products, relative, so that updates of which some depend on others are no case apart


@dataclass(frozen=True, eq=False)
class HonestStatistics:
    """The honest updates (h, d) of a round, and how far from their middle an update still passes for one of them.

    Attackers know neither the server's root set nor its networks, so each of the six features has a stand-in:

    * reconstruction error: length of the part outside the span of the others,
    * cosine to the root update: cosine to the mean of the others,
    * mean cosine to the other updates: the same,
    * L2 norm: the same,
    * sign agreement with the root update: share of coordinates with the sign of the mean of the others,
    * Shapley value: inner product with the mean of the others, the first-order value.

    *The others* are all honest updates for a forged one, and all but itself for an honest one: measured against a mean
    that it is part of, it would seem better than it is. ``middle`` (6,) are the medians, ``tolerance`` (6,) ``width``
    times the MADs, ``cosines`` the lowest and the highest cosine between two honest updates.

    ``gram`` (h, h) are all inner products and ``inverse`` is its inverse; ``mean`` (d,) float64 is of length
    ``length``. ``common`` (2, h) are two directions as combinations of the honest updates: that of their mean, and
    across it that of the mean of the same updates brought to one length, for this is how the mean cosine to the others
    sees them; zero where it adds nothing. ``common_cosines`` (2, h) are their cosines to the honest updates.
    """

    honest: torch.Tensor
    mean: torch.Tensor
    length: float
    common: np.ndarray
    common_cosines: np.ndarray
    gram: np.ndarray
    inverse: np.ndarray
    middle: np.ndarray
    tolerance: np.ndarray
    cosines: tuple[float, float]

    @staticmethod
    def of(honest: torch.Tensor, *, width: float) -> HonestStatistics:
        """Look at the honest updates (h, d), h >= 3, once; their inner products have to be finite and not all zero."""
        h, d = honest.shape
        gram, mean = gram_matrix(honest.numpy()), mean_of(honest)
        length = dot(mean, mean) ** 0.5
        inverse = np.linalg.inv(gram + RIDGE * gram.trace() / h * np.eye(h))
        squares, sums = np.diag(gram), gram.sum(axis=1)
        norms, cosines = np.sqrt(squares), cosines_from(gram)
        others = np.sqrt(np.maximum(gram.sum() - 2 * sums + squares, 0)) / (h - 1)
        shapley = (sums - squares) / (h - 1)
        scale = norms * others
        features = np.column_stack(
            [
                1 / np.sqrt(np.diag(inverse)),
                np.divide(shapley, scale, out=np.zeros(h), where=scale > 0),
                _without_diagonal(cosines).sum(axis=1) / (h - 1),
                norms,
                [_agreement(row, mean - row.double() / h) for row in honest],
                shapley,
            ]
        )
        middle = np.median(features, axis=0)
        typical = (gram.trace() / h) ** 0.5
        rounding = ROUNDING * np.array([typical, 1, 1, typical, 1, typical * length])
        rounding[SIGN] = max(ROUNDING, 0.5 / d)  # the median of an even number of shares may lie between two
        tolerance = np.maximum(width * np.median(np.abs(features - middle), axis=0), rounding)
        pairs = cosines[~np.eye(h, dtype=bool)]
        along = np.full(h, 1 / (h * length))
        unit = np.divide(1 / h, norms, out=np.zeros(h), where=norms > 0)
        across = unit - (unit @ gram @ along) * along
        size = float(across @ gram @ across)
        common = np.stack([along, across / size**0.5 if size > ROUNDING**2 else np.zeros(h)])
        return HonestStatistics(
            honest=honest,
            mean=mean,
            length=length,
            common=common,
            common_cosines=common @ gram @ np.diag(unit) * h,
            gram=gram,
            inverse=inverse,
            middle=middle,
            tolerance=tolerance,
            cosines=(float(pairs.min()), float(pairs.max())),
        )

    def features(self, forged: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The six features (m, 6) of forged updates (m, d) that are all sent, and the cosines (m, m) between them."""
        h, m = len(self.honest), len(forged)
        products, gram = products_of(forged, self.honest), gram_matrix(forged.numpy())
        norms, cosines = np.sqrt(np.diag(gram)), cosines_from(gram)
        outside = np.diag(gram) - np.einsum("ih,hk,ik->i", products, self.inverse, products)
        shapley = products.mean(axis=1)
        to_honest = products / np.maximum(np.outer(norms, np.sqrt(np.diag(self.gram))), np.finfo(float).tiny)
        features = np.column_stack(
            [
                np.sqrt(np.maximum(outside, 0)),
                shapley / np.maximum(norms * self.length, np.finfo(float).tiny),
                (to_honest.sum(axis=1) + _without_diagonal(cosines).sum(axis=1)) / (h + m - 1),
                norms,
                [_agreement(row, self.mean) for row in forged],
                shapley,
            ]
        )
        return features, cosines

    def strain_of(self, forged: torch.Tensor) -> float:
        """The largest strain on any of the forged updates (m, d), or between two of them; at most 1 where all hide."""
        features, cosines = self.features(forged)
        between = self.pair_strain(cosines[~np.eye(len(forged), dtype=bool)])
        return float(np.max([*self.strain(features), *between]))

    def strain(self, features: np.ndarray) -> np.ndarray:
        """How far features (..., 6) are from the middle, the farthest of the six counting: (...), at most 1 inside."""
        farthest: np.ndarray = (np.abs(features - self.middle) / self.tolerance).max(axis=-1)
        return farthest

    def pair_strain(self, cosines: np.ndarray) -> np.ndarray:
        """The same of cosines between two forged updates, any shape: at most 1 where honest pairs have such a one."""
        lowest, highest = self.cosines
        strain: np.ndarray = np.abs(2 * cosines - lowest - highest) / max(highest - lowest, ROUNDING)
        return strain


def _agreement(row: torch.Tensor, other: torch.Tensor) -> float:
    """The share of coordinates in which two (d,) vectors have the same sign; zero counts as positive."""
    return int(((row >= 0) == (other >= 0)).sum()) / len(row)


def _without_diagonal(matrix: np.ndarray) -> np.ndarray:
    rest: np.ndarray = matrix - np.diag(np.diag(matrix))
    return rest
