"""One hospital's defence of one version, found and made ready when it is first asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from actors.endpoint.arguments import EndpointArguments
from fedplatform.core.compute import CPU, Compute
from fedplatform.data.device_pixels import images_on
from fedplatform.defence import Certificate, DefendedClassifier, Diagnosis, Examination, KeyedNoise
from fedplatform.serving.bundle import Bundle
from fedplatform.serving.versions import bundle_of

COUNTER = 0  # of the keyed noise; stands in the audit log


@dataclass(frozen=True)
class ModelName:
    """A hospital's model of a version, and the text by which Serve's multiplexing knows it."""

    hospital_id: str
    version: str

    def __str__(self) -> str:
        return f"{self.hospital_id}@{self.version}"

    @staticmethod
    def parse(text: str) -> ModelName:
        """Back from the text."""
        hospital_id, _, version = text.rpartition("@")
        return ModelName(hospital_id, version)


@dataclass(frozen=True, eq=False)
class Examined:
    """What the first half makes of n scans: diagnoses of those that are done, and what the purifier has to know.

    ``diagnoses`` holds None for a scan that goes to the purifier; ``examination`` is of those alone, in their order.
    ``errors`` (n, patches) are the autoencoder's, where they were asked for and there is one.
    """

    diagnoses: tuple[Diagnosis | None, ...]
    parts: tuple[dict[str, float], ...]
    examination: Examination | None
    errors: np.ndarray | None
    milliseconds: float


@dataclass(frozen=True, eq=False)
class Treated:
    """What the second half makes of n scans; ``purified`` (n, c, h, w) float32 is the first copy of each."""

    diagnoses: tuple[Diagnosis, ...]
    purified: np.ndarray
    milliseconds: float


@dataclass(frozen=True, eq=False)
class Model:
    """A defence in use, on the device of ``compute``. Scans come as uint8 (n, c, h, w); what is told is on the CPU.

    For it goes to other replicas, which may be on another device.
    """

    bundle: Bundle
    defended: DefendedClassifier
    compute: Compute

    def examine(self, scans: np.ndarray) -> tuple[Examination, tuple[Diagnosis | None, ...]]:
        """The first half, and what can be said already: a scan of depth 0 is answered as it is."""
        with torch.no_grad(), self.compute.computing():
            images = self._images(scans)
            examination = self.defended.examine(images)
            done = (examination.depth == 0).nonzero().flatten()
            spoken = self.defended.conclude(self.defended.treat(images[done], examination[done]))
        diagnoses: list[Diagnosis | None] = [None] * len(scans)
        for row, diagnosis in zip(done.cpu().tolist(), spoken, strict=True):
            diagnoses[row] = diagnosis
        return examination.to(CPU), tuple(diagnoses)

    def patch_errors(self, scans: np.ndarray) -> np.ndarray | None:
        """Where the autoencoder did not expect what it saw, (n, patches)."""
        if self.defended.detector is None:
            return None
        with torch.no_grad(), self.compute.computing():
            found: np.ndarray = self.defended.detector.patch_errors(self._images(scans)).cpu().numpy()
        return found

    def treat(self, scans: np.ndarray, examination: Examination) -> tuple[tuple[Diagnosis, ...], np.ndarray]:
        """The second half."""
        with torch.no_grad(), self.compute.computing():
            passage = self.defended.treat(self._images(scans), examination.to(self.compute.place))
            return tuple(self.defended.conclude(passage)), passage.purified.cpu().numpy()

    def certify(self, scan: np.ndarray, *, sigma: float, samples: int, seed: int) -> Certificate:
        """What no attack within a radius can change about one scan (1, c, h, w)."""
        generator = torch.Generator().manual_seed(seed)
        with self.compute.computing():
            return self.defended.certify(self._images(scan)[0], sigma=sigma, samples=samples, generator=generator)

    def _images(self, scans: np.ndarray) -> torch.Tensor:
        return images_on(scans, self.compute)


@dataclass(frozen=True)
class ModelStore:
    """Loads models."""

    arguments: EndpointArguments

    def load(self, name: ModelName) -> Model:
        """A model, its files checked against their digests, its noise keyed by the hospital's secret.

        It is on the GPU where Serve gave this replica one, and on ONNX Runtime where not.
        """
        bundle = bundle_of(self.arguments.where().folder(name.version), name.hospital_id)
        noise = KeyedNoise(self.arguments.secret(name.hospital_id), COUNTER)
        compute = Compute().here()
        if compute.is_cpu:
            return Model(bundle, bundle.accelerated(noise), compute)
        return Model(bundle, bundle.defended(noise).to(compute.place), compute)
