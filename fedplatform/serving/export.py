"""A trained classifier for programs that do not know this one: plain PyTorch, ONNX, or a checkpoint of timm."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import nn

from fedplatform.core.files import write_folder_durably
from fedplatform.core.settings import ExperimentError
from fedplatform.core.tasks import TASKS
from fedplatform.data.shards import Manifest
from fedplatform.experiments.defence.load import read_classifier, read_experiment
from fedplatform.experiments.engine import local_training
from fedplatform.experiments.experiment import Experiment
from fedplatform.experiments.weights import BEST, GLOBAL
from fedplatform.learning.models import Classifier, OrdinalClassifier, TimmModel
from fedplatform.learning.training import Trainer
from fedplatform.serving.onnx_engine import onnx_of

Format = Literal["torch", "onnx", "timm"]
CARD = "model.json"
HOW = {
    "torch": "torch.export.load('FOLDER/model.pt2').module()(images)",
    "onnx": "onnxruntime.InferenceSession('FOLDER/model.onnx').run(None, {'images': images})",
    "timm": "timm.create_model('local-dir:FOLDER', pretrained=True).eval()((images - mean) / std)",
}
AS_THEY_ARE = "float32 (n, channels, size, size) in [0, 1]; the model normalises them itself"
PIXELS = {
    "torch": AS_THEY_ARE,
    "onnx": AS_THEY_ARE,
    "timm": "float32 (n, channels, size, size) in [0, 1], less the mean and divided by the std of config.json",
}


def export(run: Path, folder: Path, *, form: Format, hospital_id: str | None = None, best: bool = False) -> str:
    """Write the classifier of a finished run into a new ``folder``; returns the line of Python that uses it.

    Without ``hospital_id`` it is the shared model; with ``best`` that of the best round on validation scans, which
    needs an algorithm by which nothing stays in the hospitals, for these keep the part of the last round. Beside it
    lies ``model.json``: classes, size, which pixels it takes, what its answers are, and that line. The exported model
    answers logits (n, num_classes). Raises :class:`ExperimentError` where the run has no such model, where parts of it
    stay in the hospitals and none is named, or where the network does not go into this format; then there is no folder.
    """
    experiment = read_experiment(run)
    manifest = Manifest.load(run / "shards")
    trainer = Trainer(local_training(experiment.replace(device="cpu"), manifest))
    network = _classifier(trainer, experiment, run, hospital_id, best=best)
    shape = (2, manifest.settings.channels, manifest.settings.size, manifest.settings.size)
    example = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    if folder.exists():
        raise ExperimentError(f"{folder} is there already; an export goes into a new folder")
    try:
        files = WRITERS[form](network, example, experiment)
    except ExperimentError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:  # of an exporter that cannot take the network
        said = (str(error).splitlines() or [""])[0]
        raise ExperimentError(f"this network does not go into {form}: {type(error).__name__}: {said}") from error
    card = {
        "classes": list(manifest.classes),
        "channels": shape[1],
        "size": shape[2],
        "images": PIXELS[form],
        "task": experiment.task,
        "answer": TASKS[experiment.task].answer,
        "use": HOW[form].replace("FOLDER", str(folder)),
        "run": run.resolve().name,
        "round": "best on validation scans" if best else "last",
        "hospital": hospital_id or "none: the shared model",
        "note": "research software and no medical device",
    }
    try:
        write_folder_durably(folder, {**files, CARD: _json(card)})
    except OSError as error:
        raise ExperimentError(f"cannot write {folder}: {error.strerror or error}") from error
    return str(card["use"])


def _classifier(
    trainer: Trainer, experiment: Experiment, run: Path, hospital_id: str | None, *, best: bool
) -> Classifier:
    known = experiment.hospital_ids()
    if best and trainer.has_own_part:
        raise ExperimentError(
            f"under {experiment.settings()['algorithm']} a part of the model stays in each hospital, and that of the "
            "best round is not kept: export without --best"
        )
    if hospital_id is not None and hospital_id not in known:
        raise ExperimentError(f"no hospital is called {hospital_id!r}; there are {', '.join(known)}")
    if hospital_id is None and trainer.has_own_part:
        raise ExperimentError(
            f"under {experiment.settings()['algorithm']} a part of the model stays in each hospital: --hospital NAME "
            f"says whose, one of {', '.join(known)}"
        )
    file = BEST if best and (run / BEST).exists() else GLOBAL
    network = read_classifier(trainer, run, hospital_id or known[0], file=file)
    if not isinstance(network, Classifier):
        raise ExperimentError(f"the run trained a {type(network).__name__}, which is no classifier")
    return network


def _as_torch(network: nn.Module, example: torch.Tensor, experiment: Experiment) -> dict[str, bytes]:  # noqa: ARG001
    sink = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own use of what is deprecated
        batch = torch.export.Dim("n", min=1)
        torch.export.save(torch.export.export(network, (example.contiguous(),), dynamic_shapes=({0: batch},)), sink)
    return {"model.pt2": sink.getvalue()}


def _as_onnx(network: nn.Module, example: torch.Tensor, experiment: Experiment) -> dict[str, bytes]:  # noqa: ARG001
    return {"model.onnx": onnx_of(network, example[:1])}


def _as_timm(network: nn.Module, example: torch.Tensor, experiment: Experiment) -> dict[str, bytes]:
    assert isinstance(network, Classifier)
    if isinstance(network, OrdinalClassifier):
        raise ExperimentError(
            "timm has no place for the ordinal objective's borders between classes; torch and onnx do"
        )
    channels, size = example.shape[1], example.shape[2]
    num_classes = network(example[:1]).shape[1]
    state = {name: value.contiguous() for name, value in network.body.state_dict().items()}
    mean, std = (value.reshape(-1).expand(channels).tolist() for value in (network.mean, network.std))
    arguments: dict[str, Any] = {"in_chans": channels}
    if hasattr(network.body, "patch_embed"):  # a vision transformer is built for its size
        arguments["img_size"] = size
    config = {
        "architecture": _timm_name(experiment),
        "num_classes": num_classes,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [channels, size, size],
            "fixed_input_size": "img_size" in arguments,
            "mean": mean,
            "std": std,
            "num_classes": num_classes,
        },
    }
    return {"model.safetensors": save(state, metadata={"format": "pt"}), "config.json": _json(config)}


def _timm_name(experiment: Experiment) -> str:
    """The network's name in timm. Raises :class:`ExperimentError` where it has none."""
    if not isinstance(experiment.model, TimmModel):
        raise ExperimentError(
            f"--format timm is for networks of timm, the run's is {experiment.settings()['model']}; torch and onnx "
            "take any"
        )
    return experiment.model.name


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


WRITERS: dict[Format, Callable[[nn.Module, torch.Tensor, Experiment], dict[str, bytes]]] = {
    "torch": _as_torch,
    "onnx": _as_onnx,
    "timm": _as_timm,
}
