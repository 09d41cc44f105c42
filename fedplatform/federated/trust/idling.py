"""Free riding: an update that tells nothing beyond the server's last step, and nothing that another update tells."""

from __future__ import annotations

import numpy as np

from fedplatform.core.vectors import cosines_to, double_blocks, one_blas_thread
from fedplatform.federated.trust.anomaly import ramp

# In deviations of chance. Pure noise has a median near .67 and seldom more than 1. Of honest hospitals 1.0 to 8 was
# seen in a network of 3,814 weights at Dirichlet .1, seldom below 1.3: one such round costs an honest hospital trust,
# and only many in a row exclude it. In larger networks chance is smaller, and honest hospitals lie further off.
CHANCE = (1.0, 2.0)  # up to the first an update tells nothing, from the second on it does
TELLING = 1.5  # of the median hospital; below it the whole round is noise, and nobody is told apart by it
WORDS = "tells nothing beyond the server's last step, as who does not train"


def idling(deltas: np.ndarray, root_delta: np.ndarray, previous_delta: np.ndarray) -> np.ndarray:
    """How surely each hospital sent what training cannot give, 0 to 1: (n, d), (d,) and (d,) to (n,) float64.

    From the updates and the root update their part along the previous step is taken away. What is left of an honest
    update has something in common with what is left of the others: they all train one model on scans of one kind. Zeros
    and noise have nothing in common with anybody, whatever their length, and the last step sent back leaves nothing or
    noise. The length itself says little: a hospital with few scans sends short updates.

    Two vectors u and v, of one of which the signs are random, have a product of mean 0 and variance sum u_i^2 v_i^2.
    An update's evidence is the median of its absolute products, in units of that deviation, with the other updates and
    the root update; a minority of riders who share their noise cannot raise it. Where the median hospital's evidence is
    below ``TELLING``, as under the noise of differential privacy, nobody is idle.
    """
    found = evidence(deltas, root_delta, previous_delta)
    if len(found) < 2 or float(np.median(found)) < TELLING:
        return np.zeros(len(found))
    return 1.0 - ramp(found, CHANCE)


def evidence(deltas: np.ndarray, root_delta: np.ndarray, previous_delta: np.ndarray) -> np.ndarray:
    """The median absolute product with the others of what each update adds to the last step, in deviations: (n,)."""
    n = len(deltas)
    shares = np.zeros(n + 1)
    square = float(np.einsum("j,j->", previous_delta, previous_delta, dtype=np.float64))
    if square > 0:
        cosines, norms = cosines_to(deltas, previous_delta)
        shares[:n] = cosines * norms / np.sqrt(square)
        (cosine,), (norm,) = cosines_to(root_delta[None], previous_delta)
        shares[n] = cosine * norm / np.sqrt(square)
    products, variances = np.zeros((n + 1, n + 1)), np.zeros((n + 1, n + 1))
    with one_blas_thread():
        for columns, block in double_blocks(deltas):
            rows = np.concatenate([block, root_delta[columns].astype(np.float64)[None]])
            rows -= shares[:, None] * previous_delta[columns]
            products += rows @ rows.T
            np.square(rows, out=rows)
            variances += rows @ rows.T
    deviations = np.sqrt(variances)
    scores = np.divide(np.abs(products), deviations, out=np.zeros_like(products), where=deviations > 0)
    np.fill_diagonal(scores, np.nan)
    median: np.ndarray = np.nanmedian(scores[:n], axis=1)
    return median
