"""Scans on their way through attack and defence, and what was said of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedplatform.experiments.report.finished_evaluation import Pictures
from fedplatform.experiments.report.picture import png

BRIGHTEST = 0.995  # the quantile of all anomaly maps that is drawn white


@dataclass(frozen=True)
class Panel:
    """One picture and what it shows."""

    picture: str
    name: str


@dataclass(frozen=True)
class Story:
    """One scan from attack to answer."""

    truth: str
    verdict: str
    is_right: bool  # the answer of the defence
    panels: tuple[Panel, ...]


def magnification(attacked: np.ndarray, clean: np.ndarray) -> int:
    """The power of two by which a perturbation is drawn larger, so that the largest just fits around grey."""
    largest = float(np.abs(attacked - clean).max(initial=0.0))
    # A hundredth of a power more is allowed, so that 8/255, a hair above 1/32, is drawn 16 times as large.
    return 2 ** max(0, math.floor(math.log2(0.5 / largest) + 0.01)) if largest else 1


def tell(pictures: Pictures) -> list[Story]:
    """Every scan as five pictures and a sentence; magnification and colours are the same for all of them."""
    times = magnification(pictures.attacked, pictures.clean)
    most = brightest(pictures)
    stories = []
    for index, label in enumerate(pictures.labels.tolist()):
        clean, attacked = pictures.clean[index], pictures.attacked[index]
        panels = (
            Panel(png(_grey(clean)), "scan"),
            Panel(png(_grey(0.5 + times * (attacked - clean))), f"perturbation × {times}, grey = 0"),
            Panel(png(_grey(attacked)), "attacked scan"),
            Panel(png(_heat(pictures.anomaly[index] / most)), "anomaly map"),
            Panel(png(_grey(pictures.purified[index])), "purified"),
        )
        is_right = bool(pictures.answers_defended[index] == label)
        stories.append(Story(pictures.classes[label], verdict(pictures, index), is_right, panels))
    return stories


def brightest(pictures: Pictures) -> float:
    """The error from which on an anomaly map is white; above 0."""
    positive = pictures.anomaly[pictures.anomaly > 0]
    return float(np.quantile(positive, BRIGHTEST)) if positive.size else 1.0


def verdict(pictures: Pictures, index: int) -> str:
    """What an undefended model answered, whether the scan was caught, how it was cleaned and what was answered then."""

    def answer(label: int) -> str:
        return f"{pictures.classes[label]} ({'right' if label == pictures.labels[index] else 'wrong'})"

    score, threshold = float(pictures.scores[index]), float(pictures.thresholds[index])
    depth = int(pictures.depths[index])
    caught = f"caught (score {score:.1f} > {threshold:.1f})"
    missed = f"not caught (score {score:.1f} ≤ {threshold:.1f})"
    steps = [caught if pictures.flagged[index] else missed] if math.isfinite(score) and math.isfinite(threshold) else []
    steps.append(f"purified to depth {depth}" if depth else "taken as it is")
    steps.append(f"answered: {answer(pictures.answers_defended[index])}")
    return f"undefended: {answer(pictures.answers_undefended[index])} → {', '.join(steps)}"


def _grey(image: np.ndarray) -> np.ndarray:
    levels: np.ndarray = 255 * np.clip(image, 0, 1)
    return levels.round().astype(np.uint8)


def _heat(share: np.ndarray) -> np.ndarray:
    """(h, w) from 0 to 1 as (3, h, w): black, red, yellow, white."""
    return _grey(np.stack([3 * share, 3 * share - 1, 3 * share - 2]))
