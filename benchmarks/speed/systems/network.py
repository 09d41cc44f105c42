"""The small network and the scans of the rounds, the same for every system."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

CLASSES, SIDE = 10, 28
BATCH, RATE, MOMENTUM = 32, 0.05, 0.9


class SmallNetwork(nn.Module):
    """Two convolutions and two layers behind them for (n, 1, 28, 28): 119,530 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64 * 7 * 7, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(images))
        return logits


@dataclass(frozen=True)
class Small:
    """Builds the network as fedplatform asks for it."""

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        if (channels, num_classes, size) != (1, CLASSES, SIDE):
            raise ValueError(f"the benchmark's network takes {SIDE} x {SIDE} grey scans of {CLASSES} classes")
        return SmallNetwork()


def write_scans(file: str, *, hospitals: int, scans: int) -> None:
    """Random scans uint8 (hospitals, scans, 1, 28, 28) and labels, which train as fast as real ones."""
    draw = np.random.default_rng(0)
    np.savez(
        file,
        images=draw.integers(0, 256, (hospitals, scans, 1, SIDE, SIDE), dtype=np.uint8),
        labels=draw.integers(0, CLASSES, (hospitals, scans)),
    )


def read_scans(file: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every hospital's images in [0, 1] and labels."""
    found = np.load(file)
    return [
        (torch.from_numpy(images.astype(np.float32) / 255), torch.from_numpy(labels))
        for images, labels in zip(found["images"], found["labels"], strict=True)
    ]


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One local epoch, as a systems' own example would write it."""
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    model.train()
    for batch in torch.randperm(len(labels)).split(BATCH):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimiser.step()
