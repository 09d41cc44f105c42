"""Differential privacy of whole hospitals: updates are cut and drowned before they are masked; an accountant counts."""

from __future__ import annotations

import numpy as np

from fedplatform.federated.secure.privacy import Grouped

DELTA = 1e-5  # of (epsilon, delta); far below one in the number of hospitals
ORDERS = (1 + np.geomspace(1e-4, 1e5, 400)).tolist()  # of Renyi divergences: the best of them counts


def protect(update: np.ndarray, privacy: Grouped, *, members: int, generator: np.random.Generator) -> np.ndarray:
    """The update (d,) float64, cut to the norm ``clip`` and, where asked for, with this member's part of the noise.

    The Gaussian mechanism, distributed (Dwork et al., EUROCRYPT 2006): noise of independent members adds up in
    variance, so a sum is protected though no member trusts the server or the others to add all of it.
    """
    protected = update.astype(np.float64)
    if privacy.clip:
        protected *= min(1.0, privacy.clip / max(float(np.linalg.norm(protected)), np.finfo(np.float64).tiny))
    if privacy.noise:
        protected += generator.normal(scale=privacy.noise_of_one(members), size=len(protected))
    return protected


def epsilon(privacy: Grouped, *, rounds: int) -> float:
    """Epsilon at ``DELTA`` after so many rounds in which a hospital took part in one sum each; infinite without noise.

    Two federations are neighbours if they differ in one hospital, whose update is all zeros in the other: the
    sensitivity of a sum is then ``clip``. Accounted in Renyi differential privacy (Mironov, CSF 2017) by Opacus.
    Randomness of the groups is not counted on, so that a server that chooses them gains nothing.
    """
    if not privacy.noise:
        return float("inf")
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(privacy.noise, 1.0, rounds)]
    return float(accountant.get_epsilon(delta=DELTA, alphas=ORDERS))


def promise(privacy: Grouped, *, rounds: int) -> str:
    """In words what the server learns of updates, and what that comes to in differential privacy."""
    seen = f"the server sees means of at least {privacy.size} hospitals, and opens one for two thirds of them"
    if not privacy.noise:
        return f"{seen}; no differential privacy"
    return (
        f"{seen}; updates of a hospital are private to epsilon {epsilon(privacy, rounds=rounds):.3g} "
        f"at delta {DELTA:g} over {rounds} rounds"
    )
