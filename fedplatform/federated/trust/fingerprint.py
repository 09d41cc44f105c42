"""The six-feature fingerprint of every update of a round (OptiGradTrust, arXiv 2507.23638), from one look at them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from fedplatform.core.seeding import numpy_generator
from fedplatform.core.vectors import BLOCK, cosines_from, double_blocks, norm_of, one_blas_thread, products_with

FEATURES = ("reconstruction_error", "root_cosine", "peer_cosine", "norm", "sign_agreement", "shapley")
SKETCH = 512  # numbers in the fixed random projection of an update
# Below these a spread is noise of estimation and not a difference between hospitals. In units of the feature:
# the reconstruction error and the norm relative to the median, cosines and the sign agreement as they are, the Shapley
# value relative to the round's mean absolute one.
LEAST_SPREAD = np.array([0.1, 0.05, 0.05, 0.1, 0.01, 0.2])
MAD_TO_STD = 1.4826
COPY = 0.999  # a cosine that two hospitals with scans of their own never reach


@dataclass(frozen=True, eq=False)
class Measurements:
    """What one look at the updates (n, d) and the root update (d,) gives.

    ``gram`` (n, n) float64 are all inner products, ``root_products`` (n,) those with the root update, ``root_norm`` its
    length; ``sign_agreement`` (n,) the share of coordinates with the root update's sign; ``sketches`` (n, SKETCH)
    float64 a random projection whose signs are the same in every round.
    """

    gram: np.ndarray
    root_products: np.ndarray
    root_norm: float
    sign_agreement: np.ndarray
    sketches: np.ndarray

    @property
    def norms(self) -> np.ndarray:
        """L2 norms (n,)."""
        return np.sqrt(np.diag(self.gram))


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """The fingerprints of a round's n hospitals.

    ``values`` (n, 6) float64 in the order of ``FEATURES``: squared error of the update VAE on the sketch, cosine to the
    root update, mean cosine to the other updates, L2 norm, share of coordinates with the root update's sign, and
    Shapley value (in units of root loss, positive helps). ``z`` (n, 6) are robust z-scores: distance to the round's
    median in units of its MAD, scaled to a standard deviation. ``sketches`` (n, SKETCH) float32 are divided by the
    median norm; ``closest`` (n,) is the largest cosine to another hospital's update.
    """

    hospital_ids: tuple[str, ...]
    values: np.ndarray
    z: np.ndarray
    sketches: np.ndarray
    closest: np.ndarray

    def table(self) -> np.ndarray:
        """All that a network needs, squashed to about -1 to 1: (n, 13) float32.

        Six z-scores, then six values on their own scale (the positive ones as logarithms relative to the round's
        median, the Shapley value relative to the round's mean absolute one), then the largest cosine to another update.
        """
        error, root, peer, norm, sign, shapley = self.values.T
        own = [
            np.tanh(np.log(np.maximum(error, 1e-12) / max(float(np.median(error)), 1e-12))),
            root,
            peer,
            np.tanh(np.log(np.maximum(norm, 1e-12) / max(float(np.median(norm)), 1e-12))),
            4 * (sign - 0.5),
            np.tanh(shapley / max(float(np.abs(shapley).mean()), 1e-12)),
            self.closest,
        ]
        return np.column_stack([np.tanh(self.z / 3), *own]).astype(np.float32)


def measure(deltas: np.ndarray, root_delta: np.ndarray) -> Measurements:
    """Go over the updates (n, d) and the root update (d,), one block of columns in memory at a time.

    A zero counts as positive in the sign agreement.
    """
    n, d = deltas.shape
    block_signs, column_signs = _projection(-(-d // BLOCK))
    gram, agreeing, projected = np.zeros((n, n)), np.zeros(n, dtype=np.int64), np.zeros((n, BLOCK))
    differing = np.empty((n, BLOCK), dtype=np.int32)
    with one_blas_thread():
        for sign, (columns, block) in zip(block_signs, double_blocks(deltas), strict=True):
            width = columns.stop - columns.start
            gram += block @ block.T
            add_up = np.add if sign > 0 else np.subtract
            add_up(projected[:, :width], block, out=projected[:, :width])
            # The sign bit of an exclusive or, moved down, is -1 where signs differ: no product that could underflow.
            bits = differing[:, :width]
            np.bitwise_xor(deltas[:, columns].view(np.int32), root_delta[columns].view(np.int32), out=bits)
            np.right_shift(bits, 31, out=bits)
            agreeing += width + np.add.reduce(bits, axis=1, dtype=np.int32)
    projected *= column_signs
    return Measurements(
        gram=gram,
        root_products=products_with(deltas, root_delta),
        root_norm=norm_of(root_delta),
        sign_agreement=agreeing / d,
        sketches=projected.reshape(n, -1, SKETCH).sum(axis=1),
    )


@cache
def _projection(num_blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """The signs of a fixed random projection: coordinate (block b, column c) goes to c mod SKETCH with sign s_b t_c.

    A count sketch (Charikar et al., 2002) whose hash is the position: inner products are kept on average, for any two
    coordinates that meet have independent signs, and it costs one addition a coordinate.
    """
    draw = numpy_generator(0, "sketch of updates")
    columns = draw.choice([-1.0, 1.0], size=BLOCK)
    return draw.choice([-1.0, 1.0], size=num_blocks), columns


def take(
    measured: Measurements, *, hospital_ids: tuple[str, ...], errors: np.ndarray, shapley: np.ndarray
) -> Fingerprints:
    """Put fingerprints together; ``errors`` (n,) are of the update VAE, ``shapley`` (n,) values in root loss."""
    norms = measured.norms
    cosines = cosines_from(measured.gram)
    np.fill_diagonal(cosines, np.nan)
    scale = norms * measured.root_norm
    root = np.divide(measured.root_products, scale, out=np.zeros_like(scale), where=scale > 0)
    lonely = len(norms) == 1
    peer = np.zeros(1) if lonely else np.nanmean(cosines, axis=1)
    values = np.column_stack([errors, root.clip(-1, 1), peer, norms, measured.sign_agreement, shapley])
    return Fingerprints(
        hospital_ids=hospital_ids,
        values=values,
        z=robust_z(values, votes=first_of_copies(cosines)),
        sketches=relative_sketches(measured),
        closest=np.zeros(1) if lonely else np.nanmax(cosines, axis=1),
    )


def relative_sketches(measured: Measurements) -> np.ndarray:
    """The sketches divided by the round's median norm, (n, SKETCH) float32: the scale of honest ones is about 1."""
    median = float(np.median(measured.norms))
    return (measured.sketches / (median or 1.0)).astype(np.float32)


def first_of_copies(cosines: np.ndarray) -> npt.NDArray[np.bool_]:
    """Whose update is no copy of an earlier one, (n,) bool, by all cosines (n, n); the diagonal is not looked at."""
    return np.logical_not(np.tril(cosines >= COPY, k=-1).any(axis=1))


def robust_z(values: np.ndarray, *, votes: np.ndarray) -> np.ndarray:
    """Distance of every value (n, 6) to its column's median, in units of the MAD scaled to a standard deviation.

    Median and MAD are of those with a vote (n,) bool, so that attackers who all send the same move them only once. The
    spread is at least ``LEAST_SPREAD``, so that noise does not separate hospitals which hardly differ.
    """
    median = np.median(values[votes], axis=0)
    spread = MAD_TO_STD * np.median(np.abs(values[votes] - median), axis=0)
    unit = np.array([median[0], 1.0, 1.0, median[3], 1.0, float(np.abs(values[:, 5]).mean())])
    floor = np.maximum(LEAST_SPREAD * unit, 1e-12)
    z: np.ndarray = (values - median) / np.maximum(spread, floor)
    return z
