"""The detector: how little a scan looks like the clean ones that its hospital sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from fedplatform.defence.calibration import Fusion

PARTS = ("reconstruction", "disagreement", "tampering")
AGREED = 1e-6  # nats of divergence at which two answers are the same


@dataclass(frozen=True, eq=False)
class Detector:
    """Reconstruction error, disagreement and the look of an attack, fused to one anomaly score (after MedFedPure).

    The masked ``autoencoder`` sees what does not fit its surroundings; the disagreement, what the classifier no longer
    says once the scan is purified (Xu et al., NDSS 2018); the ``sensor``, a network of two classes, what attacked scans
    have in common (Metzen et al., ICLR 2017). Which of them count, and what is usual, the ``fusion`` says: it was
    fitted on clean scans of the hospital.
    """

    autoencoder: nn.Module
    sensor: nn.Module
    fusion: Fusion

    @property
    def compares(self) -> bool:
        """Whether it needs to know what the classifier says of the purified scan."""
        return "disagreement" in self.fusion.counting

    def parts(self, images: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> dict[str, torch.Tensor]:
        """The scores that count, (n,) each, of scans and of their logits (n, k) before and after purification."""
        scores = {}
        for part in self.fusion.counting:
            if part == "reconstruction":
                scores[part] = self.patch_errors(images).mean(dim=1)
            elif part == "disagreement":
                # In logarithms, or a few clean scans that divide the classifier would set the threshold of all.
                scores[part] = disagreement(before, after).clamp_min(AGREED).log()
            else:
                untouched, tampered = self.sensor(images).unbind(dim=1)
                scores[part] = tampered - untouched
        return scores

    def patch_errors(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, c, h, w) to how much each patch looks like noise was added, (n, patches), over all masks."""
        errors: torch.Tensor = self.autoencoder.patch_errors(images)  # type: ignore[operator]
        return errors

    def __call__(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The anomaly score (n,), in robust deviations of clean scans; differentiable."""
        return self.fusion(parts)


def disagreement(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """How differently two rows of logits (n, k) answer: their symmetric Kullback-Leibler divergence (n,), in nats."""
    log_before, log_after = before.log_softmax(dim=1), after.log_softmax(dim=1)
    there = functional.kl_div(log_after, log_before, log_target=True, reduction="none").sum(dim=1)
    back = functional.kl_div(log_before, log_after, log_target=True, reduction="none").sum(dim=1)
    return (there + back) / 2
