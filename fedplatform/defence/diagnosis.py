"""What a hospital is told about one scan."""

from __future__ import annotations

from dataclasses import dataclass

DOUBTFUL = "low confidence"
FOREIGN = "another kind of picture"
FOREIGN_HEADER = "another kind of scan by its header"


@dataclass(frozen=True)
class Diagnosis:
    """A verdict and what it rests on.

    ``label`` is the answer of the vote; ``referral`` says why it does not stand and a radiologist must look:
    :data:`DOUBTFUL`, :data:`FOREIGN` or :data:`FOREIGN_HEADER`, None where it stands. ``kind_score`` is how unlike the
    hospital's scans the picture is (:class:`~fedplatform.defence.kind.KindGate`), 0 where no gate asks.
    ``probabilities`` are calibrated on the hospital's own validation scans; ``confidence`` is the largest of them.
    ``anomaly_score`` above ``threshold`` means ``flagged``. ``depth`` is the noise step of the purification, 0 where
    the scan was taken as it is; ``votes`` are the answers of the single purified copies.

    >>> import fedplatform as fp
    >>> rest = {"anomaly_score": 0.2, "threshold": 1.5, "flagged": False, "depth": 0, "votes": ()}
    >>> fp.Diagnosis(label=1, referral=None, confidence=0.9, probabilities=(0.1, 0.9), **rest).label
    1
    """

    label: int
    referral: str | None
    confidence: float
    probabilities: tuple[float, ...]
    anomaly_score: float
    threshold: float
    flagged: bool
    depth: int
    votes: tuple[int, ...]
    kind_score: float = 0.0

    @property
    def referred(self) -> bool:
        """Whether a radiologist must look."""
        return self.referral is not None
