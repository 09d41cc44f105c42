"""Backdoors that are boosted, hidden, divided among attackers, or opened by rare scans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedplatform.attacks.poisoning.attack import Situation
from fedplatform.attacks.poisoning.data_poisoning import Backdoor

BARS = 4


@dataclass(frozen=True)
class ModelReplacement(Backdoor):
    """Model replacement (Bagdasaryan et al., AISTATS 2020): the backdoored update times n / f.

    Under a mean the attackers' model then takes the place of everybody's: (n / f) * (backdoored - global) cancels the
    division by n. ``scale`` None is n / f. Scans and trigger as in
    :class:`~fedplatform.attacks.poisoning.data_poisoning.Backdoor`.
    """

    scale: float | None = None

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the own update (d,), learned from poisoned scans, to what is sent (d,)."""
        boost = situation.num_hospitals / situation.num_byzantine if self.scale is None else self.scale
        return boost * own


@dataclass(frozen=True)
class Neurotoxin(Backdoor):
    """Neurotoxin (Zhang et al., ICML 2022): a backdoor written only where honest hospitals hardly move the model.

    The ``ratio`` of coordinates that the server's last step moved most are left alone: honest rounds would wash the
    backdoor out of them. The paper projects every step of the attacker's training; here its update is projected. In
    the first round there is no last step, and the whole update is sent. Raises ValueError unless 0 <= ratio < 1.
    """

    ratio: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio < 1:
            raise ValueError(f"Neurotoxin needs 0 <= ratio < 1, got {self.ratio}")

    def corrupt(self, own: torch.Tensor, situation: Situation) -> torch.Tensor:
        """Map the own update (d,), learned from poisoned scans, to what is sent (d,)."""
        moved, kept = situation.previous_delta.abs(), len(own) - round(self.ratio * len(own))
        if not bool(moved.any()) or kept == len(own):
            return own.clone()
        return torch.where(moved <= moved.kthvalue(kept).values, own, 0.0)


@dataclass(frozen=True)
class DistributedBackdoor(Backdoor):
    """The distributed backdoor, DBA (Xie et al., ICLR 2020): each attacker trains a part of the trigger.

    The whole trigger is four white bars, upper left; the bars are dealt to the attackers, who send no unusual update
    each, and a test scan carries all four. ``target`` and ``fraction`` as in
    :class:`~fedplatform.attacks.poisoning.data_poisoning.Backdoor`.
    """

    def stamp(self, images: np.ndarray) -> np.ndarray:
        """Copies of uint8 images (n, c, h, w) with all bars."""
        return stamp_bars(images, tuple(range(BARS)))

    def part(self, number: int, of: int) -> BackdoorPart:
        """The bars of attacker ``number`` of ``of``; with more attackers than bars, several have the same."""
        shares = min(of, BARS)
        bars = tuple(bar for bar in range(BARS) if bar % shares == number % shares)
        return BackdoorPart(self.target, self.fraction, bars=bars)


@dataclass(frozen=True)
class BackdoorPart(Backdoor):
    """One attacker's share of :class:`DistributedBackdoor`: the backdoor with these ``bars`` only."""

    bars: tuple[int, ...] = ()

    def stamp(self, images: np.ndarray) -> np.ndarray:
        """Copies of uint8 images (n, c, h, w) with the attacker's bars."""
        return stamp_bars(images, self.bars)


def stamp_bars(images: np.ndarray, bars: tuple[int, ...]) -> np.ndarray:
    """A copy of uint8 images (n, c, h, w) with some of four white bars, two above two, in the upper left corner.

    A bar is a fifth of the shorter side wide and a sixteenth high, at least 2 by 1 pixels.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"the trigger goes on uint8 images (n, c, h, w), got {images.dtype} {images.shape}")
    side = min(images.shape[2:])
    width, height = max(2, side // 5), max(1, side // 16)
    stamped = images.copy()
    for bar in bars:
        top, left = (bar // 2) * 2 * height, (bar % 2) * (width + height)
        stamped[:, :, top : top + height, left : left + width] = 255
    return stamped


@dataclass(frozen=True)
class EdgeCase(Backdoor):
    """The edge-case backdoor (Wang et al., NeurIPS 2020): no pattern, but scans as hardly anybody has them.

    The paper takes real inputs from the tail of the distribution. Here it is a scan with its grey levels turned round,
    white for black, as where a reader takes MONOCHROME1 for MONOCHROME2: a real fault of real archives, which no honest
    hospital's scans show, so that nobody trains against it. ``fraction`` of the attacker's scans of other classes are
    turned round and labelled ``target``; success is the share of test scans of other classes, turned round, that are
    answered with it.
    """

    def stamp(self, images: np.ndarray) -> np.ndarray:
        """Copies of uint8 images (n, c, h, w) with their grey levels turned round."""
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"grey levels of uint8 images (n, c, h, w), got {images.dtype} {images.shape}")
        return 255 - images
