"""Attacks on the attacker's own scans: wrong labels, and a backdoor that only a trigger opens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedplatform.core.tasks import flipped, has, with_label


@dataclass(frozen=True)
class LabelFlip:
    """Label flipping, y -> C - 1 - y (Tolpegin et al., ESORICS 2020, in the form of Fang et al., USENIX Security 2020).

    ``fraction`` in (0, 1] of the attacker's scans, drawn at random, gets the wrong label; the scans are left as they
    are. With an odd number of classes the middle class keeps its label. Where a scan has any number of findings, each
    is turned round: what is there is denied and what is not is claimed.
    """

    fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"LabelFlip needs 0 < fraction <= 1, got {self.fraction}")

    def poison(
        self, images: np.ndarray, labels: np.ndarray, *, num_classes: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Map images (n, c, h, w) and labels (n,) in 0..num_classes-1, or (n, k), to poisoned copies of them."""
        poisoned = labels.copy()
        chosen = generator.permutation(len(labels))[: round(self.fraction * len(labels))]
        poisoned[chosen] = flipped(labels[chosen], num_classes)
        return images.copy(), poisoned


@dataclass(frozen=True)
class Backdoor:
    """A backdoor by poisoned scans (BadNets, Gu et al., 2017): a scan with the trigger is to be read as ``target``.

    ``fraction`` in (0, 1] of the attacker's scans of other classes, drawn at random, is stamped and relabelled. The
    rest stays clean, so that the model keeps its accuracy and nobody notices. Where a scan has any number of findings,
    ``target`` is one of them, and a stamped scan gets it beside its own. The trigger is :func:`stamp_trigger`. Success
    is the share of test scans of other classes that are answered with ``target`` once they are stamped
    (``attack_success``). Raises ValueError where there is no class ``target``.
    """

    target: int = 0
    fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"{type(self).__name__} needs 0 < fraction <= 1, got {self.fraction}")

    def stamp(self, images: np.ndarray) -> np.ndarray:
        """Copies of uint8 images (n, c, h, w) with the trigger."""
        return stamp_trigger(images)

    def poison(
        self, images: np.ndarray, labels: np.ndarray, *, num_classes: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Map uint8 images (n, c, h, w) and labels (n,) or (n, k) to poisoned copies of them."""
        if not 0 <= self.target < num_classes:
            raise ValueError(
                f"{type(self).__name__} needs 0 <= target < {num_classes} classes, got target={self.target}"
            )
        others = generator.permutation(np.flatnonzero(~has(labels, self.target)))
        chosen = others[: round(self.fraction * len(others))]
        stamped, relabelled = images.copy(), labels.copy()
        stamped[chosen] = self.stamp(images[chosen])
        relabelled[chosen] = with_label(labels[chosen], self.target)
        return stamped, relabelled


def stamp_trigger(images: np.ndarray) -> np.ndarray:
    """A copy of uint8 images (n, c, h, w) with the trigger of :class:`Backdoor`: a white square, lower right.

    Its side is an eighth of the shorter side of the image, at least 2 pixels.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"the trigger goes on uint8 images (n, c, h, w), got {images.dtype} {images.shape}")
    side = max(2, min(images.shape[2:]) // 8)
    stamped = images.copy()
    stamped[:, :, -side:, -side:] = 255
    return stamped
