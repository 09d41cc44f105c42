"""What is strange about an update, and in which words to say so: anomaly detection on norm, direction and root loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedplatform.federated.trust.fingerprint import COPY, FEATURES, Fingerprints

COPYING = 4  # the column of severities
HARM_ALONE = 0.5  # harm alone never shuts out: a hospital whose scanner the root set does not know harms it, too
ERROR, ROOT, PEER, NORM, SIGN, SHAPLEY = range(len(FEATURES))


@dataclass(frozen=True)
class AnomalyDetection:
    """Marks updates that are too long, point the wrong way, harm the root set, or are copies (after ITEGAM-JETIA 2026).

    The paper gives no formulas; these are this project's. Each test maps a robust z-score to a severity from 0 at its
    first bound to 1 at its second. A direction is strange where both the cosine to the root update and the shared signs
    lie far below the round's, and the cosine is not positive: hospitals with rare data point elsewhere, not back. Harm
    to the root set goes no further than half, unless the update also points back.
    """

    length: tuple[float, float] = (3.0, 6.0)
    direction: tuple[float, float] = (1.5, 2.5)
    harm: tuple[float, float] = (4.0, 8.0)
    strangeness: tuple[float, float] = (5.0, 10.0)

    def weighted(self, *, length: float, direction: float, harm: float, strangeness: float) -> AnomalyDetection:
        """The same with the z-scores of each test counted so many times; 0 leaves it out."""

        def over(bounds: tuple[float, float], weight: float) -> tuple[float, float]:
            low, high = (bound / weight if weight else math.inf for bound in bounds)
            return low, high

        return AnomalyDetection(
            length=over(self.length, length),
            direction=over(self.direction, direction),
            harm=over(self.harm, harm),
            strangeness=over(self.strangeness, strangeness),
        )

    def __call__(self, fingerprints: Fingerprints) -> Anomalies:
        """The severities of a round's n hospitals."""
        values, z = fingerprints.values, fingerprints.z
        median_norm = float(np.median(values[:, NORM])) or 1.0
        away = -(z[:, ROOT] + z[:, SIGN]) / 2
        backwards = values[:, ROOT] <= 0
        severities = np.column_stack(
            [
                ramp(z[:, NORM], self.length),
                ramp(away, self.direction) * ramp(-values[:, ROOT], (-0.05, 0.05)),
                ramp(-z[:, SHAPLEY], self.harm) * (values[:, SHAPLEY] < 0) * np.where(backwards, 1.0, HARM_ALONE),
                ramp(z[:, ERROR], self.strangeness),
                fingerprints.closest >= COPY,
            ]
        )
        return Anomalies(severities, values[:, NORM] / median_norm)


@dataclass(frozen=True, eq=False)
class Anomalies:
    """Severities (n, 5), 0 to 1, of length, direction, harm, strangeness, copying; norms over the median one (n,)."""

    severities: np.ndarray
    relative_norms: np.ndarray

    @property
    def normality(self) -> np.ndarray:
        """How little is strange about each hospital, (n,), 0 to 1.

        Copying is left out: one of the copies may be the honest original, so the rule gives all of them one vote.
        """
        normal: np.ndarray = np.prod(1 - self.severities[:, :COPYING], axis=1)
        return normal

    def words(self, row: int) -> str:
        """What is strange about a hospital, the gravest first; empty where nothing is."""
        times = self.relative_norms[row]
        said = (
            f"norm {times:{'.0f' if times >= 10 else '.1f'}} times the median",
            "points away from the root update",
            "makes the model worse on the root set",
            "unlike any honest update seen",
            "sends the same update as another hospital",
        )
        severities = self.severities[row]
        return "; ".join(said[test] for test in np.argsort(-severities, kind="stable") if severities[test] > 0)


def ramp(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """0 up to the first bound, 1 from the second, straight between."""
    low, high = bounds
    if math.isinf(low):
        return np.zeros_like(values)
    return ((values - low) / (high - low)).clip(0.0, 1.0)
