"""One hospital's full defence as files: networks as safetensors, all that was fitted as JSON, and no scan.

Beside the weights lie the same networks as ONNX, for a CPU: to export them takes seconds, so it is done once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from fedplatform.core.settings import ExperimentError, Settings, parsed_by, written_by
from fedplatform.data.origin import Origin, is_foreign
from fedplatform.defence import (
    SAMPLERS,
    BitDepth,
    DefendedClassifier,
    Detector,
    Diagnosis,
    DiffusionPurifier,
    Fusion,
    Gate,
    Noise,
    Sampler,
)
from fedplatform.defence.diagnosis import FOREIGN_HEADER
from fedplatform.defence.kind import kind_gate
from fedplatform.defence.sensor import Sensor
from fedplatform.learning.models import MODELS, Classifier, ModelBuilder
from fedplatform.learning.models.memory_layout import laid_out
from fedplatform.learning.parameters import plain_copy
from fedplatform.serving.onnx_engine import exported, on_onnx_runtime

CARD = "bundle.json"
KIND = "kind.safetensors"  # the gate for pictures of another kind
# From the engine's names of the networks to those of their files.
PARTS = {"classifier": "classifier", "network": "purifier", "autoencoder": "autoencoder", "sensor": "sensor"}
FORMAT = 2  # of the folder; another one is refused

Exports = dict[str, bytes]  # ONNX files by the digest of the weights in them
Builder = Annotated[ModelBuilder, parsed_by(MODELS, "model"), written_by(MODELS)]


class Networks(Settings):
    """How the networks of a defence are built before their weights are read."""

    classifier: Builder
    autoencoder: Builder
    sensor: Builder
    purifier: Builder
    sampler: Annotated[Sampler, parsed_by(SAMPLERS, "sampler"), written_by(SAMPLERS)]


class Card(Settings):
    """What ``bundle.json`` says: whose defence it is, how its networks are built, and all that was fitted.

    ``without_finding`` is the class of scans that show nothing, None where there is none. ``origins`` are the kinds of
    files that it was trained on, as far as headers told. ``fusion`` is None where there is no detector. ``digests`` are
    the SHA-256 of all other files.
    """

    # A threshold may be infinite, which JSON has no number for.
    model_config = ConfigDict(ser_json_inf_nan="strings")

    format: int = FORMAT
    hospital_id: str
    defence: str
    classes: tuple[str, ...]
    without_finding: str | None
    size: int
    channels: int
    origins: tuple[Origin, ...]
    networks: Networks
    gate: Gate
    fusion: Fusion | None
    probe_depth: int
    copies: tuple[int, ...]
    symmetries: tuple[int, ...]
    temperature: float
    least_confidence: float
    digests: dict[str, str]

    @property
    def usual(self) -> int | None:
        """The number of the class without a finding."""
        return None if self.without_finding is None else self.classes.index(self.without_finding)

    def judged(self, diagnosis: Diagnosis, origin: Origin) -> Diagnosis:
        """A diagnosis, referred where the file's header names another kind of scan than this model was trained on."""
        return replace(diagnosis, referral=FOREIGN_HEADER) if is_foreign(origin, self.origins) else diagnosis


@dataclass(frozen=True, eq=False)
class Bundle:
    """A folder with ``bundle.json`` and the files that it names, found to be whole."""

    folder: Path
    card: Card
    digest: str  # of bundle.json, and through it of every weight

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a bundle and check every file against its digest; raises :class:`ExperimentError` in one line."""
        try:
            written = (folder / CARD).read_bytes()
            found = json.loads(written)
        except (OSError, ValueError) as error:
            raise ExperimentError(f"{folder} holds no bundle ({CARD})") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ExperimentError(f"{folder / CARD} is not of format {FORMAT}, the one that is understood here")
        card = Card.from_settings(found)
        for name, digest in card.digests.items():
            file = folder / name
            if not file.is_file() or _digest(file.read_bytes()) != digest:
                raise ExperimentError(f"{file} is not the file that {CARD} speaks of")
        return cls(folder, card, _digest(written))

    @property
    def purifier_digest(self) -> str:
        """Of all that decides how a flagged scan is cleaned: the network, the way back, the depths, the copies."""
        card = self.card
        said = {
            "weights": card.digests["purifier.safetensors"],
            "networks": card.networks.model_dump(mode="json"),
            "gate": card.model_dump(mode="json")["gate"],
            "copies": card.copies,
        }
        return _digest(json.dumps(said, sort_keys=True).encode())

    def defended(self, noise: Noise) -> DefendedClassifier:
        """The defence, ready for use; its answers are those of the original, bit for bit."""
        card = self.card
        networks = card.networks
        # Trained and measured in this layout, so its sums must run in the same order here.
        classifier = laid_out(
            self._weights(Classifier(self._built(networks.classifier)), "classifier"),
            channels=card.channels,
            size=card.size,
        )
        network = self._weights(self._built(networks.purifier), "purifier")
        detector = None
        if card.fusion is not None:
            detector = Detector(
                self._weights(self._built(networks.autoencoder), "autoencoder"),
                self._weights(self._built(Sensor(networks.sensor)), "sensor"),
                card.fusion,
            )
        kind = None
        if KIND in card.digests:
            kind = kind_gate(load_file(self.folder / KIND))
        return DefendedClassifier(
            classifier,
            DiffusionPurifier(network, networks.sampler),  # type: ignore[arg-type]
            card.gate,
            noise,
            detector=detector,
            probe_depth=card.probe_depth,
            copies=card.copies,
            symmetries=card.symmetries,
            temperature=card.temperature,
            least_confidence=card.least_confidence,
            kind=kind,
        )

    def accelerated(self, noise: Noise) -> DefendedClassifier:
        """The same on ONNX Runtime where that could be exported: to 1e-4 the same answers, and no gradient."""
        files = {part: self.folder / f"{name}.onnx" for part, name in PARTS.items()}
        models = {part: file.read_bytes() for part, file in files.items() if file.name in self.card.digests}
        return on_onnx_runtime(self.defended(noise), models)

    def _built(self, builder: ModelBuilder) -> nn.Module:
        return builder(channels=self.card.channels, num_classes=len(self.card.classes), size=self.card.size)

    def _weights(self, network: nn.Module, name: str) -> nn.Module:
        file = self.folder / f"{name}.safetensors"
        try:
            network.load_state_dict(load_file(file))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ExperimentError(f"{file} does not hold the {name} that {CARD} speaks of") from error
        return network.eval().requires_grad_(False)


def save(
    defended: DefendedClassifier,
    folder: Path,
    *,
    hospital_id: str,
    defence: str,
    classes: tuple[str, ...],
    without_finding: str | None,
    size: int,
    channels: int,
    origins: tuple[Origin, ...] = (),
    networks: Networks,
    exports: Exports | None = None,
) -> Bundle:
    """Write a defence into a new ``folder``; ``networks`` says how the networks that it holds were built.

    ``exports`` remembers what was exported: hospitals share most of their networks.

    Raises ValueError for a purifier other than diffusion, which has no weights to keep.
    """
    purifier, detector = defended.purifier, defended.detector
    if not isinstance(purifier, DiffusionPurifier):
        raise ValueError(f"a bundle holds a diffusion purifier, got {type(purifier).__name__}")
    held: dict[str, nn.Module] = {"classifier": defended.classifier, "purifier": purifier.network}
    if detector is not None:
        held |= {"autoencoder": detector.autoencoder, "sensor": detector.sensor}
    folder.mkdir(parents=True)
    digests = {}
    for name, network in held.items():
        file = folder / f"{name}.safetensors"
        save_file({key: plain_copy(value) for key, value in network.state_dict().items()}, file)
        digests[file.name] = _digest(file.read_bytes())
    if defended.kind is not None:
        save_file({key: value.contiguous() for key, value in defended.kind.state_dict().items()}, folder / KIND)
        digests[KIND] = _digest((folder / KIND).read_bytes())
    models = _exports(defended, digests, {} if exports is None else exports, torch.zeros(1, channels, size, size))
    for file_name, model in models.items():
        (folder / file_name).write_bytes(model)
        digests[file_name] = _digest(model)
    card = Card(
        hospital_id=hospital_id,
        defence=defence,
        classes=classes,
        without_finding=without_finding,
        size=size,
        channels=channels,
        origins=origins,
        networks=networks,
        gate=defended.gate,
        fusion=None if detector is None else detector.fusion,
        probe_depth=defended.probe_depth,
        copies=defended.copies,
        symmetries=defended.symmetries,
        temperature=defended.temperature,
        least_confidence=defended.least_confidence,
        digests=digests,
    )
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Bundle.open(folder)


def _exports(
    defended: DefendedClassifier, weights: Mapping[str, str], known: Exports, example: torch.Tensor
) -> dict[str, bytes]:
    """The ONNX files of a defence by their names; ``weights`` are the digests of its files of weights."""
    shared = [f"{name}.safetensors" for part, name in PARTS.items() if part != "classifier"]
    if all(weights[file] in known for file in shared if file in weights):
        # Only the classifier is new: the rest is left out, and with it most of the time.
        fresh = exported(replace(defended, detector=None, purifier=BitDepth()), example)
    else:
        fresh = exported(defended, example)
    known |= {weights[f"{PARTS[part]}.safetensors"]: model for part, model in fresh.models.items()}
    names = {name: weights.get(f"{name}.safetensors") for name in PARTS.values()}
    return {f"{name}.onnx": known[digest] for name, digest in names.items() if digest in known}


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()
