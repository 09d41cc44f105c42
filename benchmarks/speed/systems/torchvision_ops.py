"""Lets torchvision import beside a CPU-only torch, as fedplatform.learning.models.torchvision_ops does."""

from __future__ import annotations

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
library = torch.library.Library("torchvision", "FRAGMENT")


def declare_operators() -> None:
    """Declare the operators whose absence fails the import; no system calls them here."""
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
