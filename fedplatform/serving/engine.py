"""ONNX Runtime in place of PyTorch: the same networks, faster on a CPU."""

from __future__ import annotations

import torch

from fedplatform.defence import DefendedClassifier


def accelerated(defended: DefendedClassifier, example: torch.Tensor) -> DefendedClassifier:
    """The same defence with those networks on ONNX Runtime that are faster there, for images like ``example`` (1, c, h, w).

    It answers as the original does to 1e-4 and takes batches of any size, but has no gradient: it asks for
    ``torch.no_grad``.
    """
    raise NotImplementedError
