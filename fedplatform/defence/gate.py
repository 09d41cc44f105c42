"""The gate: from an anomaly score to how deep a scan is purified."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fedplatform.defence.calibration import DepthMap

OPENED = 1.0  # scores over which the gate opens, for the gradient alone: one robust deviation of clean scans


@dataclass(frozen=True)
class Gate:
    """Which scans are purified, and how deep (after MedFedPure, Karami et al. 2025, arXiv 2511.11625).

    A scan whose score is above ``threshold`` is flagged and purified to the depth that ``flagged_depth`` gives for its
    score; every other one to ``usual_depth``, where 0 leaves it as it is. So the paper's gate has a usual depth of 0
    and one depth for flagged scans, and DiffPure (Nie et al., ICML 2022) one depth for all.
    """

    threshold: float
    usual_depth: int
    flagged_depth: DepthMap

    @property
    def closed(self) -> bool:
        """Whether no scan is ever purified."""
        return self.threshold == math.inf and not self.usual_depth

    def flags(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores (n,) to flags (n,) bool."""
        return ~(scores <= self.threshold)  # a score that is not a number is no reason to trust a scan

    def depth(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores (n,) to noise steps (n,) int64."""
        usual = torch.full_like(scores, self.usual_depth, dtype=torch.int64)
        return torch.where(self.flags(scores), self.flagged_depth(scores), usual)

    def opening(self, scores: torch.Tensor) -> torch.Tensor:
        """The flags (n,) as 0.0 and 1.0 whose gradient is that of a smooth step, so that an attacker can climb it."""
        smooth = torch.sigmoid((scores - self.threshold) / OPENED)
        return self.flags(scores).to(scores.dtype) + smooth - smooth.detach()
