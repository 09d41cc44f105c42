"""The defence of a finished run as it lies on disk, and each hospital's own, ready for use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Self

import numpy as np
import torch
import yaml
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fedplatform.data.shards import Manifest, Shard
from fedplatform.data.splits import Role
from fedplatform.defence import (
    SAMPLERS,
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
    Sampler,
    fit_temperature,
)
from fedplatform.defence.detector import PARTS
from fedplatform.engine import local_training
from fedplatform.experiment import Experiment, ExperimentError, load_settings
from fedplatform.models import MODELS, Classifier, ModelBuilder
from fedplatform.models.noise_predictor import NoiseUnet
from fedplatform.models.symmetries import SYMMETRIES
from fedplatform.settings import Settings, parsed_by, written_by
from fedplatform.training import Trainer, to_images

DEFENCE, SETTINGS, TUNED = "defence", "defence.yaml", "tuned"
STAGES = {  # what each stage of training leaves, in the order of training
    "autoencoder": "autoencoder.safetensors",
    "purifier": "purifier.safetensors",
    "tuned": f"{TUNED}/global.safetensors",
    "sensor": "sensor.safetensors",
}
FULL_DEPTH = 4.0  # robust deviations above the threshold at which a scan is purified to the greatest depth
KEY = b"fedplatform evaluation"  # of the noise in an evaluation, which must be repeatable; a server draws its own


class DefenceSettings(Settings):
    """How the defence of a run is trained and used; depths are noise steps of 1000."""

    autoencoder: Annotated[ModelBuilder, parsed_by(MODELS, "model"), written_by(MODELS)] = Field(
        "masked_autoencoder",  # type: ignore[assignment]
        description="masked autoencoder of the detector",
    )
    autoencoder_rounds: int = Field(10, ge=1, description="rounds in which the masked autoencoder is trained")
    sensor: Annotated[ModelBuilder, parsed_by(MODELS, "model"), written_by(MODELS)] = Field(
        "residual_sensor",  # type: ignore[assignment]
        description="network of the detector that is taught to tell attacked scans",
    )
    sensor_rounds: int = Field(8, ge=1, description="rounds in which the sensor is trained")
    purifier: Annotated[ModelBuilder, parsed_by(MODELS, "model"), written_by(MODELS)] = Field(
        "noise_predictor(t_max=260)",  # type: ignore[assignment]
        description="noise predictor of the purifier",
    )
    purifier_rounds: int = Field(12, ge=1, description="rounds in which the purifier is trained")
    sampler: Annotated[Sampler, parsed_by(SAMPLERS, "sampler"), written_by(SAMPLERS)] = Field(
        "one_shot",  # type: ignore[assignment]
        description=f"the purifier's way back: {', '.join(SAMPLERS)}",
    )
    tuning_rounds: int = Field(6, ge=1, description="rounds in which the classifier is tuned on purified scans")
    tuning_epsilon: float | None = Field(
        None,
        ge=0,
        le=1,
        description="attack through the purifier while the classifier is tuned, in pixel units, 0 is none (default: "
        "1.5 times what the classifier met in training)",
    )
    probe_depth: int = Field(100, ge=1, description="depth at which every scan is purified once, to see what changes")
    usual_depth: int = Field(
        0, ge=0, description="depth for scans that are not flagged (0: they are taken as they are)"
    )
    least_depth: int = Field(75, ge=1, description="depth for the least suspicious of the flagged scans")
    most_depth: int = Field(125, ge=1, description="depth for the most suspicious scans")
    copies: int = Field(8, ge=1, description="purified copies of a flagged scan that vote")
    false_positive_rate: float = Field(0.05, gt=0, lt=1, description="share of clean scans that may be flagged")
    referral_rate: float = Field(
        0.05, ge=0, lt=1, description="share of clean scans that may be referred to a radiologist for doubt"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.least_depth > self.most_depth:
            raise ValueError(f"the least depth is at most the most, got {self.least_depth} and {self.most_depth}")
        return self


@dataclass(frozen=True, eq=False)
class HospitalParts:
    """One hospital's networks and scans, of which any of its defences is put together.

    ``classifier`` is the run's own personal model, ``tuned`` the one that has seen purified scans. ``validation`` and
    ``test`` are (images (n, c, h, w) in [0, 1], labels (n,)); ``test_rows`` (n,) says where the test scans stand in
    the source, ``test_groups`` and ``validation_groups`` (n,) which of them belong together.
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

    def defended(self, defence: str) -> DefendedClassifier:
        """A row of the table by its name, fitted on this hospital's validation scans alone."""
        return DEFENCES[defence](self)

    def through(
        self,
        purifier: Purifier,
        *,
        depth: int,
        classifier: nn.Module,
        copies: int = 1,
        symmetries: tuple[int, ...] = (0,),
    ) -> DefendedClassifier:
        """A defence that sends every scan through a purifier at one depth."""
        threshold = -1.0 if depth else float("inf")  # without a detector every score is 0
        gate = Gate(threshold, usual_depth=0, flagged_depth=DepthMap(depth, depth, 0.0, 0.0))
        noise = KeyedNoise(KEY)
        defended = DefendedClassifier(classifier, purifier, gate, noise, copies=copies, symmetries=symmetries)
        return self._referring(self._calibrated(defended))

    def gated(
        self,
        parts: tuple[str, ...],
        *,
        classifier: nn.Module,
        deepest: int,
        silent: tuple[str, ...] = (),
    ) -> DefendedClassifier:
        """A defence behind a detector made of ``parts``, the depth growing to ``deepest`` with the score.

        Those in ``silent`` do not count.
        """
        setting = self.settings
        fixed = deepest == setting.least_depth
        detector = Detector(self.autoencoder, self.sensor, Fusion(dict.fromkeys(parts, 0.0), dict.fromkeys(parts, 1.0)))
        open_gate = Gate(threshold=float("inf"), usual_depth=0, flagged_depth=DepthMap(1, 1, 0.0, 0.0))
        # The temperature comes first: the disagreement, and with it the threshold, is measured in calibrated answers.
        defended = self._calibrated(
            DefendedClassifier(
                classifier,
                DiffusionPurifier(self.network, setting.sampler),
                open_gate,
                KeyedNoise(KEY),
                detector=detector,
                probe_depth=setting.probe_depth,
                copies=1 if fixed else setting.copies,
                symmetries=(0,) if fixed else SYMMETRIES,
            )
        )
        images, _ = self.validation
        with torch.no_grad():
            detector = replace(detector, fusion=Fusion.fit(defended.passage(images).parts, silent=silent))
            quantiles = Quantiles.of(replace(defended, detector=detector).passage(images).scores)
        threshold = quantiles.threshold(setting.false_positive_rate)
        depths = DepthMap(setting.least_depth, deepest, threshold, threshold + FULL_DEPTH)
        gate = Gate(threshold, usual_depth=0 if fixed else setting.usual_depth, flagged_depth=depths)
        return self._referring(replace(defended, detector=detector, gate=gate))

    def _calibrated(self, defended: DefendedClassifier) -> DefendedClassifier:
        """The same with the temperature that the validation scans ask for."""
        images, labels = self.validation
        with torch.no_grad():
            return replace(defended, temperature=fit_temperature(defended.logits(images), labels))

    def _referring(self, defended: DefendedClassifier) -> DefendedClassifier:
        """The same with the least confidence that the validation scans ask for."""
        images, _ = self.validation
        with torch.no_grad():
            doubt = -defended.logits(images).softmax(dim=1).amax(dim=1)
        return replace(defended, least_confidence=-Quantiles.of(doubt).threshold(self.settings.referral_rate))


def _whole(parts: HospitalParts) -> DefendedClassifier:
    # The autoencoder draws the anomaly map; beside the sensor its score would add noise alone (decision 6).
    return parts.gated(PARTS, classifier=parts.tuned, deepest=parts.settings.most_depth, silent=("reconstruction",))


def _as_in_the_paper(parts: HospitalParts) -> DefendedClassifier:
    return parts.gated(("reconstruction",), classifier=parts.classifier, deepest=parts.settings.least_depth)


def _everything(parts: HospitalParts) -> DefendedClassifier:
    purifier = DiffusionPurifier(parts.network, parts.settings.sampler)
    return parts.through(
        purifier, depth=parts.settings.least_depth, classifier=parts.classifier, copies=parts.settings.copies
    )


def _tuned_everything(parts: HospitalParts) -> DefendedClassifier:
    purifier = DiffusionPurifier(parts.network, parts.settings.sampler)
    return parts.through(
        purifier,
        depth=parts.settings.least_depth,
        classifier=parts.tuned,
        copies=parts.settings.copies,
        symmetries=SYMMETRIES,
    )


GATED = ("mae_gate", "whole")  # the defences with a detector, which an attacker may want to go unnoticed by
DEFENCES: Mapping[str, Callable[[HospitalParts], DefendedClassifier]] = MappingProxyType(
    {
        "no_defence": lambda parts: parts.through(
            DiffusionPurifier(parts.network, OneShot()), depth=0, classifier=parts.classifier
        ),
        "all_sides": lambda parts: parts.through(
            DiffusionPurifier(parts.network, OneShot()), depth=0, classifier=parts.classifier, symmetries=SYMMETRIES
        ),
        "all_sides_tuned": lambda parts: parts.through(
            DiffusionPurifier(parts.network, OneShot()), depth=0, classifier=parts.tuned, symmetries=SYMMETRIES
        ),
        "blur": lambda parts: parts.through(GaussianBlur(), depth=1, classifier=parts.classifier),
        "jpeg": lambda parts: parts.through(Jpeg(), depth=1, classifier=parts.classifier),
        "bit_depth": lambda parts: parts.through(BitDepth(), depth=1, classifier=parts.classifier),
        "purify_all": _everything,
        "mae_gate": _as_in_the_paper,
        "purify_all_tuned": _tuned_everything,
        "whole": _whole,
    }
)


class DefendedRun:
    """A run folder whose defence is trained: ``runs/<name>/defence/`` holds its settings and its networks.

    ``shards`` is where the hospitals' scans lie, if not in the run folder. Raises :class:`ExperimentError` in one line
    where something is missing or does not fit.
    """

    def __init__(self, path: Path, *, shards: Path | None = None) -> None:
        self.path = path
        self.experiment = read_experiment(path)
        self.shards = shards or path / "shards"
        self.manifest = Manifest.load(self.shards)
        settings = path / DEFENCE / SETTINGS
        missing = [name for name in (SETTINGS, *STAGES.values()) if not (path / DEFENCE / name).is_file()]
        if missing:
            raise ExperimentError(f"{path} has no trained defence; 'fedplatform defend {path}' trains one")
        self.settings = DefenceSettings.from_settings(yaml.safe_load(settings.read_text()))
        self.trainer = Trainer(local_training(self.experiment, self.manifest))
        self._autoencoder = self.network(path, self.manifest, self.settings.autoencoder, "autoencoder")
        self._purifier = self.network(path, self.manifest, self.settings.purifier, "purifier")
        self._sensor = self.network(path, self.manifest, Sensor(self.settings.sensor), "sensor")

    @property
    def tested(self) -> tuple[str, ...]:
        """The hospitals whose defence is attacked: honest ones with validation scans to fit it on, and test scans.

        Raises :class:`ExperimentError` where there is none.
        """
        liars = self.experiment.who_lies().hospital_ids if self.experiment.attack is not None else ()
        counts = (shard.counts for shard in self.manifest.hospitals)
        tested = tuple(
            name
            for name, count in zip(self.experiment.inside, counts, strict=True)
            if name not in liars and any(count[Role.VALIDATION]) and any(count[Role.TEST])
        )
        if not tested:
            raise ExperimentError(f"{self.path}: no honest hospital has both validation and test scans")
        return tested

    def hospital(self, hospital_id: str) -> HospitalParts:
        """One hospital's parts, read from its own shard and state."""
        number = self.experiment.inside.index(hospital_id)
        shard = Shard.open(self.shards / self.manifest.hospitals[number].file)
        return HospitalParts(
            hospital_id,
            self.settings,
            classifier=read_classifier(self.trainer, self.path, hospital_id),
            tuned=read_classifier(self.trainer, self.path / DEFENCE / TUNED, hospital_id),
            autoencoder=self._autoencoder,
            sensor=self._sensor,
            network=self._purifier,  # type: ignore[arg-type]
            validation=_scans(shard, Role.VALIDATION),
            test=_scans(shard, Role.TEST),
            test_rows=shard.rows(Role.TEST),
            test_groups=shard.groups(Role.TEST),
            validation_groups=shard.groups(Role.VALIDATION),
        )

    @staticmethod
    def network(path: Path, manifest: Manifest, builder: ModelBuilder, stage: str) -> nn.Module:
        """The network that a stage has left in the run folder ``path``, ready for use.

        Raises :class:`ExperimentError` where the file is not whole, or another network's.
        """
        settings = manifest.settings
        network = builder(channels=settings.channels, num_classes=len(manifest.classes), size=settings.size)
        file = path / DEFENCE / STAGES[stage]
        try:
            network.load_state_dict(load_file(file))
        except (SafetensorError, RuntimeError) as error:
            raise ExperimentError(
                f"{file} does not hold the {stage} of these settings; remove it to train anew"
            ) from error
        return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Sensor:
    """The builder of the sensor as its training wraps it: two classes behind a mean/std layer."""

    model: ModelBuilder

    def __call__(self, *, channels: int, num_classes: int, size: int) -> nn.Module:
        """``num_classes`` is the number of diagnoses, and of no matter here."""
        del num_classes
        return Classifier(self.model(channels=channels, num_classes=2, size=size))


def read_experiment(path: Path) -> Experiment:
    """The experiment of a finished run; raises :class:`ExperimentError` where ``path`` holds none."""
    if not (path / "experiment.yaml").is_file() or not (path / "global.safetensors").is_file():
        raise ExperimentError(f"{path} holds no finished run (experiment.yaml and global.safetensors)")
    return Experiment.from_settings(load_settings(str(path / "experiment.yaml")))


def read_weights(trainer: Trainer, path: Path) -> np.ndarray:
    """The shared weights (d,) of a finished run; raises :class:`ExperimentError` where they are another network's."""
    tensors = load_file(path / "global.safetensors")
    if {name: tuple(value.shape) for name, value in tensors.items()} != dict(
        zip(trainer.layout.names, trainer.layout.shapes, strict=True)
    ):
        raise ExperimentError(f"{path / 'global.safetensors'} does not hold the network of this experiment")
    return np.concatenate([tensors[name].numpy().ravel() for name in trainer.layout.names])


def read_classifier(trainer: Trainer, path: Path, hospital_id: str) -> nn.Module:
    """A hospital's personal classifier from a folder with ``global.safetensors`` and ``hospitals/``, ready for use."""
    state = path / "hospitals" / f"{hospital_id}.safetensors"
    if trainer.initial_personal and not state.is_file():
        raise ExperimentError(f"{state} is missing: the personal part of {hospital_id}'s model")
    personal = load_file(state) if state.is_file() else {}
    return trainer.model_of(read_weights(trainer, path), personal)


def _scans(shard: Shard, role: Role) -> tuple[torch.Tensor, torch.Tensor]:
    return to_images(shard.images(role)), torch.from_numpy(shard.labels(role).copy())
