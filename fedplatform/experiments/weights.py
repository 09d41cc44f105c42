"""The weights that a run starts from: ImageNet's, a file's, an earlier run's or a model's in MLflow."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save
from safetensors.torch import load_file
from torch import nn

from fedplatform.core.files import write_durably
from fedplatform.core.seeding import lent_stream
from fedplatform.core.settings import ExperimentError
from fedplatform.core.specification import SpecificationError
from fedplatform.learning.models import ModelBuilder, TimmModel
from fedplatform.learning.models.fitting import Fitted, fit
from fedplatform.learning.models.imagenet import KnownToTimm, imagenet_weights
from fedplatform.learning.models.started import StartedModel
from fedplatform.learning.parameters import batch_norm_names

IMAGENET, REGISTRY = "imagenet", "models:/"
GLOBAL, START = "global.safetensors", "start.safetensors"  # of a run folder: what it ended with and what it began with
BEST = "best.safetensors"  # and what an earlier round had, where that did better on validation scans
FILES = (".safetensors", ".pth", ".pt", ".bin")
REGISTERED = re.compile(r"(?P<model>models:/[^/@]+)(?P<version>/\d+|/latest|@[^/]+)?(/(?P<file>.+))?")
RUNS_DATABASE = Path("runs/mlflow.db")  # where runs are tracked unless MLFLOW_TRACKING_URI says otherwise
NESTED = (
    "state_dict",
    "model_state_dict",
    "model",
    "state_dict_ema",
)  # where files keep the weights among other things


@dataclass(frozen=True)
class Weights:
    """Where a run's first weights are from, as text: ``imagenet``, a file, a run folder, or ``models:/NAME``.

    ``kept`` is the run's own copy of what fitted its network; where there is one, it is read in place of the source,
    so that a run goes on, and is opened, with the weights that it began with.
    """

    source: str
    kept: Path | None = field(default=None, compare=False)

    def start(
        self, model: ModelBuilder, frozen: tuple[str, ...], *, channels: int, num_classes: int, size: int
    ) -> StartedModel:
        """The network's builder with these weights. Raises :class:`ExperimentError` in one line."""
        if self.kept is not None:
            return StartedModel(model, read_start(self.kept), frozen)
        fitted, _ = self.fitted(model, channels=channels, num_classes=num_classes, size=size)
        return StartedModel(model, fitted.state, frozen)

    def fitted(self, model: ModelBuilder, *, channels: int, num_classes: int, size: int) -> tuple[Fitted, str]:
        """What of the source fits the network, and where exactly it is from.

        Raises :class:`ExperimentError` in one line, naming the layers that do not fit.
        """
        with lent_stream(0):
            network = model(channels=channels, num_classes=num_classes, size=size)
        try:
            stored = self._open(model, network, size)
            return fit(stored.state, network, may_lack=stored.may_lack), stored.origin
        except (ValueError, RuntimeError, OSError, SafetensorError, UnpicklingError, EOFError) as error:
            said = " ".join(str(error).split())
            raise ExperimentError(f"weights {self.source}: {said}") from error

    def _open(self, model: ModelBuilder, network: nn.Module, size: int) -> _Stored:
        path = Path(self.source)
        if self.source == IMAGENET:
            if not isinstance(model, KnownToTimm):
                raise ValueError(
                    "ImageNet weights are of timm's networks and efficientnet_lite0; for another one give a file or run"
                )
            known = imagenet_weights(model.imagenet_name, size=size)
            return _Stored(known.state, known.origin)
        if self.source.startswith(REGISTRY):
            with TemporaryDirectory(prefix="fedplatform-") as folder:
                return _of_registry(self.source, Path(folder))
        if (path / "experiment.yaml").is_file():
            return _of_run(path, model, network)
        return _Stored(_read(path), str(path))


@dataclass(frozen=True, eq=False)
class _Stored:
    state: Mapping[str, torch.Tensor]
    origin: str
    may_lack: frozenset[str] = frozenset()


def parse_weights(value: object) -> object:
    """Weights from text; None for ``none``. Raises SpecificationError for what names no source."""
    if not isinstance(value, str):
        return value
    if value == "none":
        return None
    path = Path(value)
    known = value == IMAGENET or value.startswith(REGISTRY) or path.is_dir() or path.suffix in FILES
    if not known or not value:
        raise SpecificationError(
            f"weights are none, imagenet, a file ({', '.join(FILES)}), a run folder or models:/NAME, got {value!r}"
        )
    return Weights(value)


def describe_weights(weights: Weights | None) -> str:
    """The text from which :func:`parse_weights` makes equal ones."""
    return "none" if weights is None else weights.source


def digest_of(state: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes, types and bytes, whatever the file that held them."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def write_start(file: Path, fitted: Fitted, *, source: str, origin: str) -> str:
    """Keep what a run starts from, with what became of the rest; returns that in one line.

    Raises :class:`ExperimentError` where it cannot be written.
    """
    digest = digest_of(fitted.state)
    words = f"weights {source} ({origin}): {fitted.words}; SHA-256 {digest[:16]}"
    card = {"source": source, "origin": origin, "sha256": digest, "words": words}
    try:
        # One entry, because safetensors writes several in no fixed order, and the same weights are the same file.
        write_durably(file, save(dict(fitted.state), metadata={"weights": json.dumps(card)}))
    except OSError as error:
        raise ExperimentError(f"cannot write {file}: {error.strerror or error}") from error
    return words


def start_card(file: Path) -> dict[str, str]:
    """What :func:`write_start` noted: source, origin, sha256 and words."""
    with safe_open(file, framework="np") as opened:
        card: dict[str, str] = json.loads(opened.metadata()["weights"])
    return card


def read_start(file: Path) -> dict[str, np.ndarray]:
    """The weights that a run began with. Raises :class:`ExperimentError` where the file is damaged."""
    try:
        state: dict[str, np.ndarray] = load_arrays(file)
        intact = digest_of(state) == start_card(file)["sha256"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ExperimentError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not intact:
        raise ExperimentError(f"{file} is damaged: its SHA-256 is not the one that was noted")
    return state


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The arrays in a file; a pickle is opened as plain tensors only, so that it cannot run code."""
    if not path.is_file():
        raise ValueError("there is no such file, and no run folder with experiment.yaml")
    if path.suffix == ".safetensors":
        stored: Any = load_file(path)
    else:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    for key in NESTED:
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    if not isinstance(stored, dict) or not all(isinstance(value, torch.Tensor) for value in stored.values()):
        raise ValueError("it holds no arrays by name; save the state_dict of the network")
    return dict(stored)


def _of_run(path: Path, model: ModelBuilder, network: nn.Module) -> _Stored:
    """What an earlier run ended with; what it left frozen is what it began with."""
    if not (path / GLOBAL).is_file():
        raise ValueError(f"the run is not finished: it has no {GLOBAL}")
    settings = yaml.safe_load((path / "experiment.yaml").read_text())
    theirs = str(settings.get("model"))
    if isinstance(model, TimmModel) and ("pixels='timm'" in theirs) != (model.pixels == "timm"):
        raise ValueError(f'its pixels are normalised in another way; take --model "{theirs}"')
    ended = {name.removeprefix("body."): value for name, value in load_file(path / GLOBAL).items()}
    began = load_file(path / START) if (path / START).is_file() else {}
    frozen = settings.get("freeze")
    state = {**(began if frozen else {}), **ended}
    # Batch normalisation that stayed in the hospitals cannot be had, and begins anew.
    return _Stored(state, f"run {path.resolve().name}", batch_norm_names(network))


def _of_registry(uri: str, folder: Path) -> _Stored:
    """A model in MLflow's registry, of which only a file with plain arrays is opened."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.artifacts import download_artifacts

    parts = REGISTERED.fullmatch(uri)
    if parts is None:
        raise ValueError("a model in MLflow is models:/NAME, models:/NAME/VERSION or models:/NAME@ALIAS, then /FILE")
    registry = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{RUNS_DATABASE.resolve()}"
    model = f"{parts['model']}{parts['version'] or '/latest'}"
    try:
        downloaded = Path(download_artifacts(artifact_uri=model, dst_path=str(folder), tracking_uri=registry))
    except Exception as error:  # whatever MLflow's client raises
        raise ValueError(f"not in MLflow: {' '.join(str(error).split())}") from error
    files = {str(file.relative_to(downloaded)): file for file in sorted(downloaded.rglob("*")) if file.suffix in FILES}
    named = {name: file for name, file in files.items() if name == parts["file"]} if parts["file"] else files
    if len(named) != 1:
        raise ValueError(f"say which file, as {model}/FILE; it holds {', '.join(files) or 'no weights'}")
    ((name, file),) = named.items()
    return _Stored(_read(file), f"{model}/{name}")
