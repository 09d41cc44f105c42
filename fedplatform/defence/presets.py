"""The rows of the table: each way of guarding a scan, put together of a hospital's parts and fitted to clean scans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import nn

from fedplatform.data.images import LARGEST_USUAL, scans_at_once
from fedplatform.defence import (
    BitDepth,
    DefendedClassifier,
    DepthMap,
    Detector,
    DiffusionPurifier,
    Fusion,
    Gate,
    GaussianBlur,
    Jpeg,
    KeyedNoise,
    OneShot,
    Purifier,
    Quantiles,
    fit_temperature,
)
from fedplatform.defence.calibration import pooled
from fedplatform.defence.detector import PARTS
from fedplatform.defence.settings import DefenceSettings
from fedplatform.learning.models.noise_predictor import NoiseUnet
from fedplatform.learning.models.symmetries import SYMMETRIES

FULL_DEPTH = 4.0  # robust deviations above the threshold at which a scan is purified to the greatest depth
LARGE_AT_ONCE = 25  # scans, each seen from eight sides and purified eight times
KEY = b"fedplatform evaluation"  # of the noise in an evaluation, which must be repeatable; a server draws its own


@dataclass(frozen=True)
class CleanScanLimits:
    """What clean scans look like to a defence: how each score is measured, and the limits that few of them pass."""

    fusion: Fusion | None
    threshold: float
    least_confidence: float

    @staticmethod
    def of(
        calibrated: Sequence[tuple[DefendedClassifier, torch.Tensor]],
        defence: str,
        settings: DefenceSettings,
        *,
        f: int = 0,
    ) -> CleanScanLimits:
        """Measured on the clean scans (n, c, h, w) of one or several hospitals, in each by its own calibrated defence.

        Only the scores leave a hospital, and every scan counts as much as any other. ``f`` of the hospitals may lie
        about theirs: :func:`pooled` bounds how far that carries a limit and what scores are measured by.
        """

        def limit(scores: Sequence[torch.Tensor], rate: float) -> float:
            pool = pooled(scores, lambda own: Quantiles.of(own).threshold(rate), f=f)
            return Quantiles.of(pool).threshold(rate)

        (first, _), *_ = calibrated
        fusion, threshold = None, first.gate.threshold
        with torch.no_grad():
            if first.detector is not None:
                each = [_scores(guard, images) for guard, images in calibrated]
                fusion = Fusion.of_hospitals(each, f=f, silent=SILENT.get(defence, ()))
                fused = [fusion({name: scores[name] for name in fusion.counting}) for scores in each]
                threshold = limit(fused, settings.false_positive_rate)
            measured = CleanScanLimits(fusion, threshold, least_confidence=0.0)
            answers = [_logits(measured.apply_to(guard), images) for guard, images in calibrated]
            doubts = [-each.softmax(dim=1).amax(dim=1) for each in answers]
        return replace(measured, least_confidence=-limit(doubts, settings.referral_rate))

    def apply_to(self, defended: DefendedClassifier) -> DefendedClassifier:
        """The same defence with these limits."""
        detector, gate = defended.detector, defended.gate
        if detector is not None and self.fusion is not None:
            detector = replace(detector, fusion=self.fusion)
            depths = replace(gate.flagged_depth, low=self.threshold, high=self.threshold + FULL_DEPTH)
            gate = replace(gate, threshold=self.threshold, flagged_depth=depths)
        return replace(defended, detector=detector, gate=gate, least_confidence=self.least_confidence)


@dataclass(frozen=True, eq=False)
class HospitalParts:
    """One hospital's networks and scans, of which any of its defences is put together.

    ``classifier`` is the run's own personal model, ``tuned`` the one that has seen purified scans. ``validation`` and
    ``test`` are (images (n, c, h, w) in [0, 1], labels (n,)); ``test_rows`` (n,) says where the test scans stand in
    the source, ``test_groups`` and ``validation_groups`` (n,) which of them belong together. ``federation`` is what is
    usual in all hospitals of the run.
    """

    hospital_id: str
    settings: DefenceSettings
    classifier: nn.Module
    tuned: nn.Module
    autoencoder: nn.Module
    sensor: nn.Module
    network: NoiseUnet
    validation: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]
    test_rows: np.ndarray
    test_groups: np.ndarray
    validation_groups: np.ndarray
    federation: Callable[[str, DefenceSettings], CleanScanLimits]

    def defended(self, defence: str) -> DefendedClassifier:
        """A row of the table by its name, fitted to clean validation scans: to this hospital's own where they suffice.

        A quantile of near-identical slices of two patients says nothing of the third. Of n groups, a score that one
        new group in 20 passes can be told if n is at least 19 (see :meth:`Quantiles.threshold`); a hospital that has
        fewer borrows what is usual in the federation. The temperature is its own in any case.
        """
        own = self.calibrated(defence)
        groups = len(np.unique(self.validation_groups))
        if (groups + 1) * self.settings.false_positive_rate >= 1:
            limits = CleanScanLimits.of([(own, self.validation[0])], defence, self.settings)
        else:
            limits = self.federation(defence, self.settings)
        return limits.apply_to(own)

    def calibrated(self, defence: str) -> DefendedClassifier:
        """A row of the table that flags and refers nobody yet, with the temperature that the own scans ask for.

        The temperature comes first: the disagreement, and with it the threshold, is measured in calibrated answers.
        """
        images, labels = self.validation
        defended = DEFENCES[defence](self)
        with torch.no_grad():
            temperature = fit_temperature(_logits(defended, images), labels, self.validation_groups)
        return replace(defended, temperature=temperature)

    def through(
        self,
        purifier: Purifier,
        *,
        depth: int,
        classifier: nn.Module,
        copies: tuple[int, ...] = (0,),
        symmetries: tuple[int, ...] = (0,),
    ) -> DefendedClassifier:
        """A defence that sends every scan through a purifier at one depth."""
        threshold = -1.0 if depth else float("inf")  # without a detector every score is 0
        gate = Gate(threshold, usual_depth=0, flagged_depth=DepthMap(depth, depth, 0.0, 0.0))
        return DefendedClassifier(classifier, purifier, gate, KeyedNoise(KEY), copies=copies, symmetries=symmetries)

    def gated(
        self,
        parts: tuple[str, ...],
        *,
        classifier: nn.Module,
        deepest: int,
        usual_depth: int = 0,
        copies: tuple[int, ...] = (0,),
        symmetries: tuple[int, ...] = (0,),
    ) -> DefendedClassifier:
        """A defence behind a detector made of ``parts``, the depth growing to ``deepest`` with the score."""
        setting = self.settings
        unmeasured = Fusion(dict.fromkeys(parts, 0.0), dict.fromkeys(parts, 1.0))
        depths = DepthMap(setting.least_depth, deepest, 0.0, 0.0)
        return DefendedClassifier(
            classifier,
            DiffusionPurifier(self.network, setting.sampler),
            Gate(threshold=float("inf"), usual_depth=usual_depth, flagged_depth=depths),
            KeyedNoise(KEY),
            detector=Detector(self.autoencoder, self.sensor, unmeasured),
            probe_depth=setting.probe_depth,
            copies=copies,
            symmetries=symmetries,
        )


def _full(
    parts: HospitalParts, scores: tuple[str, ...] = PARTS, symmetries: tuple[int, ...] = SYMMETRIES
) -> DefendedClassifier:
    setting = parts.settings
    return parts.gated(
        scores,
        classifier=parts.tuned,
        deepest=setting.most_depth,
        usual_depth=setting.usual_depth,
        copies=_turned(setting.copies),
        symmetries=symmetries,
    )


def _fast(parts: HospitalParts) -> DefendedClassifier:
    return _full(parts, scores=("reconstruction", "tampering"), symmetries=(0,))


def _as_in_the_paper(parts: HospitalParts) -> DefendedClassifier:
    return parts.gated(("reconstruction",), classifier=parts.classifier, deepest=parts.settings.least_depth)


def _everything(parts: HospitalParts) -> DefendedClassifier:
    purifier = DiffusionPurifier(parts.network, parts.settings.sampler)
    upright = (0,) * parts.settings.copies
    return parts.through(purifier, depth=parts.settings.least_depth, classifier=parts.classifier, copies=upright)


def _tuned_everything(parts: HospitalParts) -> DefendedClassifier:
    purifier = DiffusionPurifier(parts.network, parts.settings.sampler)
    turned = _turned(parts.settings.copies)
    return parts.through(purifier, depth=parts.settings.least_depth, classifier=parts.tuned, copies=turned)


def _logits(defended: DefendedClassifier, images: torch.Tensor) -> torch.Tensor:
    """The answers to all clean scans, of large ones some at a time."""
    return torch.cat([defended.logits(part) for part in _parts(images)])


def _scores(defended: DefendedClassifier, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The detector's scores of all clean scans, of large ones some at a time."""
    examined = [defended.examine(part).parts for part in _parts(images)]
    return {name: torch.cat([scores[name] for scores in examined]) for name in examined[0]}


def _parts(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    size = max(images.shape[-2:])
    parts: tuple[torch.Tensor, ...] = images.split(
        len(images) if size <= LARGEST_USUAL else scans_at_once(LARGE_AT_ONCE, size)
    )
    return parts


def _turned(copies: int) -> tuple[int, ...]:
    """The sides of so many copies, each of the eight in turn."""
    return tuple(SYMMETRIES[copy % len(SYMMETRIES)] for copy in range(copies))


GATED = ("mae_gate", "fast", "full")  # the defences with a detector, which an attacker may want to go unnoticed by
# The autoencoder draws the anomaly map; beside the sensor its score would add noise alone (decision 6).
SILENT: Mapping[str, tuple[str, ...]] = MappingProxyType(dict.fromkeys(("fast", "full"), ("reconstruction",)))
DEFENCES: Mapping[str, Callable[[HospitalParts], DefendedClassifier]] = MappingProxyType(
    {
        "no_defence": lambda parts: parts.through(
            DiffusionPurifier(parts.network, OneShot()), depth=0, classifier=parts.classifier
        ),
        "tta": lambda parts: parts.through(
            DiffusionPurifier(parts.network, OneShot()), depth=0, classifier=parts.classifier, symmetries=SYMMETRIES
        ),
        "tta_tuned": lambda parts: parts.through(
            DiffusionPurifier(parts.network, OneShot()), depth=0, classifier=parts.tuned, symmetries=SYMMETRIES
        ),
        "blur": lambda parts: parts.through(GaussianBlur(), depth=1, classifier=parts.classifier),
        "jpeg": lambda parts: parts.through(Jpeg(), depth=1, classifier=parts.classifier),
        "bit_depth": lambda parts: parts.through(BitDepth(), depth=1, classifier=parts.classifier),
        "purify_all": _everything,
        "mae_gate": _as_in_the_paper,
        "purify_all_tuned": _tuned_everything,
        "fast": _fast,
        "full": _full,
    }
)
"""Puts a row together of a hospital's parts, not yet fitted: it flags and refers nobody."""
