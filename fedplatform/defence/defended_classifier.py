"""Detector, purifier, classifier and verdict as one object: what is served is what is attacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from fedplatform.defence.certificate import Certificate, certify, step_of
from fedplatform.defence.detector import Detector
from fedplatform.defence.diagnosis import DOUBTFUL, FOREIGN, Diagnosis
from fedplatform.defence.gate import Gate
from fedplatform.defence.kind import KindGate
from fedplatform.defence.noise import Noise
from fedplatform.defence.purifier import DiffusionPurifier, Purifier
from fedplatform.learning.models.symmetries import SeenFrom, seen_from


@dataclass(frozen=True, eq=False)
class Examination:
    """What is known of n scans before they are cleaned: all that the gate needs, and the answer to the bare scan.

    ``answers`` (n, k) are calibrated logits, ``parts`` the scores (n,) that ``scores`` (n,) are fused of;
    ``kind_scores`` (n,) say how unlike the hospital's scans they are, 0 without a :class:`KindGate`.
    """

    answers: torch.Tensor
    scores: torch.Tensor
    parts: dict[str, torch.Tensor]
    flagged: torch.Tensor
    depth: torch.Tensor
    kind_scores: torch.Tensor

    def to(self, device: torch.device) -> Examination:
        """The same on a device, for scans that are treated there."""
        return Examination._of([self], lambda found: found[0].to(device))

    def __getitem__(self, rows: torch.Tensor | slice) -> Examination:
        """Some of the scans, as tensors of their own: a part that is sent away takes no other scan along."""
        return Examination._of([self], lambda found: found[0][rows].clone())

    @staticmethod
    def cat(examinations: Sequence[Examination]) -> Examination:
        """Several examinations as one."""
        return Examination._of(examinations, torch.cat)

    @staticmethod
    def _of(some: Sequence[Examination], make: Callable[[list[torch.Tensor]], torch.Tensor]) -> Examination:
        """Every field made of those of some examinations."""
        return Examination(
            answers=make([one.answers for one in some]),
            scores=make([one.scores for one in some]),
            parts={name: make([one.parts[name] for one in some]) for name in some[0].parts},
            flagged=make([one.flagged for one in some]),
            depth=make([one.depth for one in some]),
            kind_scores=make([one.kind_scores for one in some]),
        )


@dataclass(frozen=True, eq=False)
class Passage:
    """All that happened to a batch of n scans on its way through the defence.

    ``logits`` (n, k) are calibrated; ``purified`` (n, c, h, w) is the first purified copy, or the scan itself where its
    ``depth`` (n,) is 0; ``votes`` (n, copies) are the answers of the copies, -1 where there was none.
    """

    logits: torch.Tensor
    scores: torch.Tensor
    parts: dict[str, torch.Tensor]
    flagged: torch.Tensor
    depth: torch.Tensor
    purified: torch.Tensor
    votes: torch.Tensor
    kind_scores: torch.Tensor


@dataclass(frozen=True, eq=False)
class DefendedClassifier:
    """One hospital's full defence (after MedFedPure, Karami et al. 2025, arXiv 2511.11625).

    A scan is classified as it is, and the detector says how suspicious it looks; one that compares answers is told
    what the classifier says after a first purification of ``probe_depth``, too. The gate turns that into a depth; a
    flagged scan is purified anew, with fresh noise, for each of its ``copies``, and their mean probability decides.
    Nothing in here knows a label or another scan of the batch. ``logits`` is differentiable through gate, purifier and
    classifier; ``diagnose`` reports the same passage in words.

    A scan as it is gets the mean answer over ``symmetries``, the sides from which it is seen (see
    :func:`~fedplatform.learning.models.symmetries.seen_from`); ``copies`` are the sides of the purified copies.

    A picture that ``kind`` takes for another kind than the hospital's scans is referred, whatever the answer is.

    ``noise`` is the default source of randomness; ``temperature``, ``least_confidence``, the gate's threshold and what
    the detector takes for usual come from clean validation scans.

    >>> import fedplatform as fp
    >>> small = {"data": "lesions", "size": 32, "scans": 200, "hospitals": 2, "root_size": 20}
    >>> defence = fp.defend(fp.run(**small, byzantine=0, rule="mean", rounds=1), preset="smoke")["hospital-00"]
    >>> import torch
    >>> defence.logits(torch.rand(3, 1, 32, 32)).shape
    torch.Size([3, 2])
    """

    classifier: nn.Module
    purifier: Purifier
    gate: Gate
    noise: Noise
    detector: Detector | None = None
    probe_depth: int = 0
    copies: tuple[int, ...] = (0,)
    symmetries: tuple[int, ...] = (0,)
    temperature: float = 1.0
    least_confidence: float = 0.0
    kind: KindGate | None = None

    def to(self, device: torch.device) -> DefendedClassifier:
        """The same defence on a device, for scans that are there. Its networks are moved and not copied.

        The noise of a scan is drawn on the CPU wherever the defence is, so that an auditor without a GPU can repeat it.
        """
        detector, purifier = self.detector, self.purifier
        if detector is not None:
            detector = replace(detector, autoencoder=detector.autoencoder.to(device), sensor=detector.sensor.to(device))
        if isinstance(purifier, DiffusionPurifier):
            purifier = replace(purifier, network=purifier.network.to(device))
        kind = None if self.kind is None else self.kind.to(device)
        return replace(self, classifier=self.classifier.to(device), detector=detector, purifier=purifier, kind=kind)

    def logits(self, images: torch.Tensor, *, noise: Noise | None = None) -> torch.Tensor:
        """Calibrated logits (n, k) of images (n, c, h, w) in [0, 1]."""
        return self.passage(images, noise=noise).logits

    def diagnose(self, images: torch.Tensor, *, noise: Noise | None = None) -> list[Diagnosis]:
        """A diagnosis of each of the images (n, c, h, w) in [0, 1]."""
        with torch.no_grad():
            return self.conclude(self.passage(images, noise=noise))

    def certify(
        self, image: torch.Tensor, *, sigma: float, samples: int, generator: torch.Generator, confidence: float = 0.999
    ) -> Certificate:
        """The class of one scan (c, h, w) and the L2 radius within which nothing can change it (pixel units).

        Denoised smoothing (Carlini et al., ICLR 2023): noise of ``sigma``, the purifier's network in one shot at the
        depth of that noise, the classifier; ``samples`` noisy copies. It holds for the classifier smoothed in this way
        and not for :meth:`diagnose`. Raises ValueError where the purifier is no diffusion, or has not learned sigma.
        """
        if not isinstance(self.purifier, DiffusionPurifier):
            raise ValueError(f"a certificate needs a diffusion purifier, got {type(self.purifier).__name__}")
        network = self.purifier.network
        depth = step_of(sigma, network.abar[: network.t_max + 1])

        def answer(noisy: torch.Tensor) -> torch.Tensor:
            t = torch.full((len(noisy),), depth, device=noisy.device)
            cleaned = (network.denoise(network.signal(t) * (2 * noisy - 1), t) + 1) / 2
            return self._answer(cleaned.clamp(0, 1)).argmax(dim=1)

        num_classes = self.classifier(image[None]).shape[1]
        return certify(
            answer,
            image,
            sigma=sigma,
            num_classes=num_classes,
            samples=samples,
            confidence=confidence,
            generator=generator,
        )

    def passage(self, images: torch.Tensor, *, noise: Noise | None = None) -> Passage:
        """Send images (n, c, h, w) through the full defence."""
        noise = noise or self.noise
        return self._treat(images, self._examine(images, noise), noise)

    def examine(self, images: torch.Tensor) -> Examination:
        """The first half of :meth:`passage`: what the detector and the gate make of images (n, c, h, w)."""
        return self._examine(images, self.noise)

    def treat(self, images: torch.Tensor, examination: Examination) -> Passage:
        """The second half: clean what the gate sends to the purifier, and answer. Together they are :meth:`passage`."""
        return self._treat(images, examination, self.noise)

    def conclude(self, passage: Passage) -> list[Diagnosis]:
        """A passage in words, a diagnosis a scan."""
        # All at once to the CPU: a GPU would be waited for at every single number.
        told = (passage.scores, passage.flagged, passage.depth, passage.votes, passage.kind_scores)
        scans = zip(passage.logits.softmax(dim=1).cpu(), *(values.cpu().tolist() for values in told), strict=True)
        return [
            Diagnosis(
                label=int(probabilities.argmax()),
                referral=self._referral(kind_score, float(probabilities.max())),
                confidence=float(probabilities.max()),
                probabilities=tuple(probabilities.tolist()),
                anomaly_score=score,
                threshold=self.gate.threshold,
                flagged=flagged,
                depth=depth,
                votes=tuple(vote for vote in votes if vote >= 0),
                kind_score=kind_score,
            )
            for probabilities, score, flagged, depth, votes, kind_score in scans
        ]

    def _referral(self, kind_score: float, confidence: float) -> str | None:
        """Why a radiologist must look, None where none must."""
        if self.kind is not None and kind_score > float(self.kind.threshold):
            return FOREIGN
        return DOUBTFUL if confidence < self.least_confidence else None

    def _treat(self, images: torch.Tensor, examination: Examination, noise: Noise) -> Passage:
        before, scores, flagged = examination.answers, examination.scores, examination.flagged
        usual, purified, votes = self._purify(images, examination.depth.where(~flagged, 0), noise, before)
        # Where gradients are asked for, every scan is purified as if it were flagged, too: the step between the two
        # branches has a slope there that an attacker may climb. The values are the same.
        open_to = torch.ones_like(flagged) if torch.is_grad_enabled() else flagged
        deep_depth = self.gate.flagged_depth(scores)
        deep, deep_purified, deep_votes = self._purify(images, deep_depth.where(open_to, 0), noise, before)
        opening = self.gate.opening(scores)[:, None]
        return Passage(
            logits=usual + opening * (deep - usual),
            scores=scores,
            parts=examination.parts,
            flagged=flagged,
            depth=examination.depth,
            purified=deep_purified.where(flagged[:, None, None, None], purified),
            votes=deep_votes.where(flagged[:, None], votes),
            kind_scores=examination.kind_scores,
        )

    def _answer(self, images: torch.Tensor) -> torch.Tensor:
        return self._calibrated(self.classifier(images))

    def _calibrated(self, logits: torch.Tensor) -> torch.Tensor:
        return logits / self.temperature

    def _examine(self, images: torch.Tensor, noise: Noise) -> Examination:
        """Without a detector every score is 0."""
        before = self._calibrated(SeenFrom(self.classifier, self.symmetries)(images))
        parts: dict[str, torch.Tensor] = {}
        scores = images.new_zeros(len(images))
        if self.detector is not None:
            after = before
            if self.detector.compares:
                probe = torch.full((len(images),), self.probe_depth, device=images.device)
                after = self._answer(self.purifier(images, probe, noise.draw(images, 1)[:, 0]))
            parts = self.detector.parts(images, before, after)
            scores = self.detector(parts)
        with torch.no_grad():  # it refers and changes no answer
            strange = images.new_zeros(len(images)) if self.kind is None else self.kind(images).to(images.dtype)
        return Examination(before, scores, parts, self.gate.flags(scores), self.gate.depth(scores), strange)

    def _purify(
        self, images: torch.Tensor, depth: torch.Tensor, noise: Noise, before: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (n, k) of the vote of all copies, the first copy, and the votes (n, copies).

        A scan of depth 0 keeps its answer ``before``, has no votes and costs no noise.
        """
        copies = len(self.copies)
        votes = torch.full((len(images), copies), -1, device=images.device)
        rows = depth.nonzero().flatten()
        if not len(rows):
            return before, images, votes
        cleaned = self.purifier(
            images[rows].repeat_interleave(copies, dim=0),
            depth[rows].repeat_interleave(copies),
            noise.draw(images[rows], copies).flatten(0, 1),
        )
        shown = cleaned.unflatten(0, (len(rows), copies))
        views = torch.stack([seen_from(shown[:, copy], side) for copy, side in enumerate(self.copies)], dim=1)
        answers = self._answer(views.flatten(0, 1)).log_softmax(dim=1).unflatten(0, (len(rows), copies))
        votes[rows] = answers.argmax(dim=2)
        logits = before.index_copy(0, rows, answers.logsumexp(dim=1))
        purified = images.index_copy(0, rows, shown[:, 0])
        return logits, purified, votes
