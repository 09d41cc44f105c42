"""What a hospital is told about one scan."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Diagnosis:
    """A verdict and what it rests on.

    ``label`` is the answer of the vote; ``referred`` says that it is too doubtful to stand and a radiologist must
    look. ``probabilities`` are calibrated on the hospital's own validation scans; ``confidence`` is the largest of
    them. ``anomaly_score`` above ``threshold`` means ``flagged``. ``depth`` is the noise step of the purification, 0
    where the scan was taken as it is; ``votes`` are the answers of the single purified copies.

    >>> import fedplatform as fp
    >>> rest = {"anomaly_score": 0.2, "threshold": 1.5, "flagged": False, "depth": 0, "votes": ()}
    >>> fp.Diagnosis(label=1, referred=False, confidence=0.9, probabilities=(0.1, 0.9), **rest).label
    1
    """

    label: int
    referred: bool
    confidence: float
    probabilities: tuple[float, ...]
    anomaly_score: float
    threshold: float
    flagged: bool
    depth: int
    votes: tuple[int, ...]
