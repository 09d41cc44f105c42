"""What PyTorch computes with: on which device, how precisely, by which kernels and with how many threads."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import torch

from fedplatform.core.errors import FedplatformError

DEVICE = re.compile("auto|cpu|cuda(:[0-9]+)?|mps")
CPU = torch.device("cpu")
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # without it cuBLAS may sum in another order each time

Precision = Literal["float32", "bf16"]
Kernels = Literal["fast", "deterministic"]


class ComputeError(FedplatformError, ValueError):
    """A device that this machine does not have; the message is one line."""


@dataclass(frozen=True)
class Compute:
    """Where networks compute, and how.

    ``device`` is ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto`` for the first CUDA GPU that the process sees and
    the CPU where there is none. With ``bf16`` networks multiply and convolve in bfloat16; weights, sums and losses stay
    float32. On a GPU ``fast`` kernels may differ in the last bits from run to run, ``deterministic`` ones do not. Scans
    stay on a GPU where they take at most ``scans_share`` of its memory, and otherwise come batch by batch.

    It is a wish and crosses process boundaries as such: :meth:`here` says what it means in this process.
    """

    device: str = "auto"
    precision: Precision = "float32"
    kernels: Kernels = "fast"
    scans_share: float = 0.5

    @classmethod
    def of(cls, device: str, precision: Precision = "float32", kernels: Kernels = "fast") -> Self:
        """From words, as this process has it. Raises :class:`ComputeError` for a device that is none or not here."""
        return cls(known_device(device), precision, kernels).here()

    def here(self) -> Self:
        """The same with the device that this process has. Raises :class:`ComputeError` where it has none such."""
        kind, _, number = self.device.partition(":")
        if kind == "auto":
            return replace(self, device="cuda:0" if torch.cuda.is_available() else "cpu")
        if kind == "cuda":
            there = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if int(number or 0) >= there:
                has = "no CUDA GPU" if not there else f"{there} CUDA GPU{'s' if there > 1 else ''}, counted from 0"
                raise ComputeError(f"--device {self.device}: this machine has {has}; --device auto takes what there is")
            return replace(self, device=f"cuda:{number or 0}")
        if kind == "mps" and not torch.backends.mps.is_available():
            raise ComputeError("--device mps: this machine has no Apple GPU; --device auto takes what there is")
        return self

    @property
    def place(self) -> torch.device:
        """The device as PyTorch has it; of a :meth:`here`."""
        assert self.device != "auto"
        return torch.device(self.device)

    @property
    def is_cpu(self) -> bool:
        """Whether everything stays in the memory of the host; of a :meth:`here`."""
        return self.place.type == "cpu"

    @property
    def on_gpu(self) -> str:
        """How it computes on a GPU, in words, and whether the same run gives the same bits again."""
        return f"{self.precision}, {self.kernels} kernels{BITS if self.kernels == 'fast' else ''}"

    def __str__(self) -> str:
        """In words, for the person who started a run; of a :meth:`here`."""
        if self.is_cpu:
            return f"cpu, {self.precision}"
        name = f" ({torch.cuda.get_device_name(self.place)})" if self.place.type == "cuda" else ""
        return f"{self.device}{name}, {self.on_gpu}"

    def sent(self, values: np.ndarray) -> torch.Tensor:
        """A copy of an array of the host on the device, through pinned memory, so that nobody waits for it."""
        place = self.place
        if place.type != "cuda":
            return torch.tensor(values).to(place)
        pinned = torch.empty(values.shape, dtype=torch.from_numpy(np.empty(0, values.dtype)).dtype, pin_memory=True)
        pinned.numpy()[...] = values
        return pinned.to(place, non_blocking=True)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes of scans may lie on the device beside what is there; a CPU has its scans anyway."""
        place = self.place
        if place.type == "cpu":
            return False
        free, total = torch.cuda.mem_get_info(place) if place.type == "cuda" else (math.inf, math.inf)
        return self.scans_share > 0 and (total == math.inf or size <= free - (1 - self.scans_share) * total)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass in this precision; its gradients are taken outside."""
        if self.precision == "float32":
            return nullcontext()
        # Without the cache: a weight that is first met where no gradient is asked for would be kept without its graph.
        return torch.autocast(self.place.type, torch.bfloat16, cache_enabled=False)

    def computing(self) -> AbstractContextManager[None]:
        """The context in which networks compute by these kernels; outside, everything is as before."""
        return _on_gpu(self.kernels) if self.place.type == "cuda" else nullcontext()


BITS = ": bits differ from run to run, --kernels deterministic keeps them"


def host_copy(value: torch.Tensor) -> torch.Tensor:
    """A copy in the memory of the host, one on the way from a device."""
    return value.detach().to(CPU, copy=True)


def known_device(word: str) -> str:
    """The word that names a device, there or not. Raises :class:`ComputeError` for any other."""
    if DEVICE.fullmatch(word) is None:
        raise ComputeError(f"a device is auto, cpu, cuda, cuda:N or mps, got {word!r}")
    return word


@contextmanager
def one_thread() -> Iterator[None]:
    """A context in which PyTorch uses one thread; outside, as many as before.

    The order of a parallel sum, and with it the last bits of a result, depends on the number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _on_gpu(kernels: Kernels) -> Iterator[None]:
    """Kernels of an NVIDIA GPU: float32 means float32, and where it is asked for every sum has one order."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    if kernels == "deterministic":
        os.environ.setdefault(CUBLAS, ":4096:8")
        cudnn.deterministic = True
        torch.use_deterministic_algorithms(True)
    # TensorFloat-32 keeps three digits, and a CPU is to find the same answer to four.
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.deterministic, deterministic = before
        torch.use_deterministic_algorithms(deterministic)
