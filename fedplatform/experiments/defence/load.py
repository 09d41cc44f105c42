"""The defence of a finished run as it lies on disk, and each hospital's own, ready for use."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fedplatform.core.compute import CPU
from fedplatform.core.tasks import TASKS
from fedplatform.core.withdrawal import read_withdrawals
from fedplatform.data.images import scans_at_once, to_images
from fedplatform.data.shards import Manifest, Shard, ShardSummary
from fedplatform.data.splits import Role
from fedplatform.defence.kind import KindGate, fit_gates
from fedplatform.defence.presets import CleanScanLimits, HospitalParts
from fedplatform.defence.sensor import Sensor
from fedplatform.defence.settings import DefenceSettings
from fedplatform.experiments.engine import local_training
from fedplatform.experiments.experiment import Experiment, ExperimentError, load_settings
from fedplatform.experiments.shards_here import shards_of
from fedplatform.experiments.weights import GLOBAL, START
from fedplatform.learning.models import ModelBuilder
from fedplatform.learning.parameters import PersonalState
from fedplatform.learning.training import Ordinal, Trainer

DEFENCE, SETTINGS, TUNED = "defence", "defence.yaml", "tuned"
KIND_SCANS = 500  # of a hospital and role, spread evenly: statistics are dozens, and all hospitals are held at once
STAGES = {  # what each stage of training leaves, in the order of training
    "autoencoder": "autoencoder.safetensors",
    "purifier": "purifier.safetensors",
    "tuned": f"{TUNED}/global.safetensors",
    "sensor": "sensor.safetensors",
}


class DefendedRun:
    """A run folder whose defence is trained: ``runs/<name>/defence/`` holds its settings and its networks.

    ``shards`` is where the hospitals' scans lie, if not in the run folder; ``device`` is where networks and scans are
    used. Raises :class:`ExperimentError` in one line
    where something is missing or does not fit.
    """

    def __init__(self, path: Path, *, shards: Path | None = None, device: torch.device = CPU) -> None:
        self.path = path
        self.device = device
        self.experiment = read_experiment(path)
        require_defensible(self.experiment)
        self.shards = shards or path / "shards"
        self.manifest = Manifest.load(self.shards)
        settings = path / DEFENCE / SETTINGS
        missing = [name for name in (SETTINGS, *STAGES.values()) if not (path / DEFENCE / name).is_file()]
        if missing:
            raise ExperimentError(f"{path} has no trained defence; 'fedplatform defend {path}' trains one")
        self.settings = DefenceSettings.from_settings(yaml.safe_load(settings.read_text()))
        self.trainer = Trainer(local_training(self.experiment, self.manifest))
        self._autoencoder = self.network(path, self.manifest, self.settings.autoencoder, "autoencoder").to(device)
        self._purifier = self.network(path, self.manifest, self.settings.purifier, "purifier").to(device)
        self._sensor = self.network(path, self.manifest, Sensor(self.settings.sensor), "sensor").to(device)
        self._limits = cache(self._measured)

    @property
    def digest(self) -> str:
        """Of the SHA-256 over all networks and settings, the first half: equal where an attacker meets the same."""
        seen = sha256()
        files = [self.path / GLOBAL, *self.path.glob("hospitals/*"), *self.path.glob(f"{DEFENCE}/**/*")]
        for file in sorted(file for file in files if file.is_file()):
            seen.update(str(file.relative_to(self.path)).encode() + b"\0" + file.read_bytes())
        return seen.hexdigest()[:32]

    @property
    def tested(self) -> tuple[str, ...]:
        """The hospitals whose defence is attacked: honest ones with validation scans to fit it on, and test scans.

        Raises :class:`ExperimentError` where there is none.
        """
        byzantine = self.experiment.adversary().hospital_ids if self.experiment.attack is not None else ()
        tested = tuple(
            name
            for name, shard in self._shards().items()
            if name not in byzantine and any(shard.counts[Role.VALIDATION]) and any(shard.counts[Role.TEST])
        )
        if not tested:
            raise ExperimentError(f"{self.path}: no honest hospital has both validation and test scans")
        return tested

    def _shards(self) -> dict[str, ShardSummary]:
        """The shards by hospital, in order, but for those that have withdrawn."""
        gone = {one.hospital_id for one in read_withdrawals(self.path)}
        dealt = shards_of(self.experiment, self.manifest)
        return {name: shard for name, shard in dealt.items() if name not in gone}

    def hospital(self, hospital_id: str) -> HospitalParts:
        """One hospital's parts, read from its own shard and state."""
        shard = Shard.open(self.shards / shards_of(self.experiment, self.manifest)[hospital_id].file)
        return HospitalParts(
            hospital_id,
            self.settings,
            classifier=read_classifier(self.trainer, self.path, hospital_id).to(self.device),
            tuned=read_classifier(self.trainer, self.path / DEFENCE / TUNED, hospital_id).to(self.device),
            autoencoder=self._autoencoder,
            sensor=self._sensor,
            network=self._purifier,  # type: ignore[arg-type]
            validation=_scans(shard, Role.VALIDATION, self.device),
            test=_scans(shard, Role.TEST, self.device),
            test_rows=shard.rows(Role.TEST),
            test_groups=shard.groups(Role.TEST),
            validation_groups=shard.groups(Role.VALIDATION),
            federation=self._limits,
        )

    def kind_gates(self) -> dict[str, KindGate]:
        """What refers pictures of another kind, by hospital: fitted to the training and validation scans of all.

        Empty where no hospital has scans of five groups. None of the hospitals is known to be Byzantine; fewer than
        half of them carry no gate.
        """
        scans = {}
        for name, of_hospital in self._shards().items():
            shard = Shard.open(self.shards / of_hospital.file)
            roles = [role for role in (Role.TRAIN, Role.VALIDATION) if any(of_hospital.counts[role])]
            parts = []
            for role in roles:
                groups = shard.groups(role)
                most = scans_at_once(KIND_SCANS, shard.size)
                rows = np.linspace(0, len(groups) - 1, min(len(groups), most)).astype(int)
                parts.append((shard.pictures(role)[rows], groups[rows]))
            if parts:
                pixels, groups = map(np.concatenate, zip(*parts, strict=True))
                scans[name] = (to_images(pixels), groups)
        return fit_gates(scans, f=self.experiment.f)

    def _measured(self, defence: str, settings: DefenceSettings) -> CleanScanLimits:
        """What is usual of the clean validation scans of all hospitals that have some; none is known to be Byzantine.

        A Byzantine hospital that never trained, as under a colluding attack, has no model and measures nothing.
        """
        hospitals = [
            replace(self.hospital(hospital_id), settings=settings)
            for hospital_id, shard in self._shards().items()
            if any(shard.counts[Role.VALIDATION]) and self._has_model(hospital_id)
        ]
        calibrated = [(each.calibrated(defence), each.validation[0]) for each in hospitals]
        return CleanScanLimits.of(calibrated, defence, settings, f=self.experiment.f)

    def _has_model(self, hospital_id: str) -> bool:
        return all(
            not self.trainer.has_own_part or (folder / "hospitals" / f"{hospital_id}.safetensors").is_file()
            for folder in (self.path, self.path / DEFENCE / TUNED)
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


def read_experiment(path: Path) -> Experiment:
    """The experiment of a finished run; raises :class:`ExperimentError` where ``path`` holds none."""
    if not (path / "experiment.yaml").is_file() or not (path / "global.safetensors").is_file():
        raise ExperimentError(f"{path} holds no finished run (experiment.yaml and global.safetensors)")
    experiment = Experiment.from_settings(load_settings(str(path / "experiment.yaml")))
    return experiment if experiment.weights is None else experiment.from_start(path / START)


def require_defensible(experiment: Experiment) -> None:
    """Raise :class:`ExperimentError` where a run's classifier is none that the scan defence is made for."""
    if TASKS[experiment.task].is_multilabel or isinstance(experiment.objective, Ordinal):
        raise ExperimentError(
            f"the scan defence, its evaluation, certificates and service are for classifiers that choose one class by "
            f"softmax, and this run has task {experiment.task} with objective {experiment.settings()['objective']}"
        )


def read_weights(trainer: Trainer, path: Path, *, file: str = GLOBAL) -> np.ndarray:
    """The shared weights (d,) of a finished run; raises :class:`ExperimentError` where they are another network's."""
    tensors = {name: value.numpy() for name, value in load_file(path / file).items()}
    try:
        return trainer.layout.joined(tensors)
    except ValueError as error:
        raise ExperimentError(f"{path / file} does not hold the network of this experiment") from error


def read_personal(trainer: Trainer, path: Path, hospital_id: str) -> PersonalState:
    """A hospital's own part, from ``hospitals/`` in a folder; empty where nothing stays in a hospital."""
    state = path / "hospitals" / f"{hospital_id}.safetensors"
    if trainer.has_own_part and not state.is_file():
        raise ExperimentError(f"{state} is missing: the personal part of {hospital_id}'s model")
    return load_file(state) if state.is_file() else {}


def read_classifier(trainer: Trainer, path: Path, hospital_id: str, *, file: str = GLOBAL) -> nn.Module:
    """A hospital's personal classifier from a folder with the shared ``file`` and ``hospitals/``, ready for use."""
    personal = read_personal(trainer, path, hospital_id)
    return trainer.model_of(read_weights(trainer, path, file=file), personal)


def _scans(shard: Shard, role: Role, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return to_images(shard.images(role)).to(device), torch.from_numpy(shard.labels(role).copy()).to(device)
