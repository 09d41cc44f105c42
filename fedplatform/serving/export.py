"""A trained classifier for programs that do not know this one: plain PyTorch, ONNX, or a checkpoint of timm."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from fedplatform.core.files import write_whole
from fedplatform.core.settings import ExperimentError
from fedplatform.data.shards import Manifest
from fedplatform.experiments.defence.load import read_classifier, read_experiment
from fedplatform.experiments.engine import local_training
from fedplatform.experiments.experiment import Experiment
from fedplatform.learning.models import Classifier, TimmModel
from fedplatform.learning.training import Trainer
from fedplatform.serving.onnx_engine import onnx_of

Format = Literal["torch", "onnx", "timm"]
CARD = "model.json"
HOW = {
    "torch": "torch.export.load('model.pt2').module()(images)",
    "onnx": "onnxruntime.InferenceSession('model.onnx').run(None, {'images': images})",
    "timm": "timm.create_model('local-dir:FOLDER', pretrained=True).eval()((images - mean) / std)",
}
PIXELS = {
    "torch": "float32 (n, channels, size, size) in [0, 1]; the model normalises them itself",
    "onnx": "float32 (n, channels, size, size) in [0, 1]; the model normalises them itself",
    "timm": "float32 (n, channels, size, size) in [0, 1], less the mean and divided by the std of config.json",
}


def export(run: Path, folder: Path, *, form: Format, hospital_id: str | None = None) -> str:
    """Write the classifier of a finished run into a new ``folder``; returns the line of Python that uses it.

    Without ``hospital_id`` it is the shared model. Beside it lies ``model.json``: classes, size, which pixels it takes,
    and that line. The exported model answers logits (n, num_classes). Raises :class:`ExperimentError` where the run has
    no such model, where parts of it stay in the hospitals and none is named, or where the network is none of timm's.
    """
    experiment = read_experiment(run)
    manifest = Manifest.load(run / "shards")
    trainer = Trainer(local_training(experiment.replace(device="cpu"), manifest))
    network = _classifier(trainer, experiment, run, hospital_id)
    shape = (2, manifest.settings.channels, manifest.settings.size, manifest.settings.size)
    example = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    if folder.exists():
        raise ExperimentError(f"{folder} is there already; an export goes into a new folder")
    if form == "timm":
        _timm_name(experiment)
    folder.mkdir(parents=True)
    WRITERS[form](network, example, folder, experiment)
    card = {
        "classes": list(manifest.classes),
        "channels": shape[1],
        "size": shape[2],
        "images": PIXELS[form],
        "answer": "logits (n, classes); softmax gives probabilities",
        "use": HOW[form].replace("FOLDER", str(folder)),
        "run": run.resolve().name,
        "hospital": hospital_id or "none: the shared model",
        "note": "research software and no medical device",
    }
    write_whole(folder / CARD, lambda path: path.write_text(json.dumps(card, indent=1) + "\n"))
    return str(card["use"])


def _classifier(trainer: Trainer, experiment: Experiment, run: Path, hospital_id: str | None) -> Classifier:
    known = experiment.hospital_ids()
    if hospital_id is not None and hospital_id not in known:
        raise ExperimentError(f"no hospital is called {hospital_id!r}; there are {', '.join(known)}")
    if hospital_id is None and trainer.initial_personal:
        raise ExperimentError(
            f"under {experiment.settings()['algorithm']} a part of the model stays in each hospital: --hospital NAME "
            f"says whose, one of {', '.join(known)}"
        )
    network = read_classifier(trainer, run, hospital_id or known[0])
    if not isinstance(network, Classifier):
        raise ExperimentError(f"the run trained a {type(network).__name__}, which is no classifier")
    return network


def _write_torch(network: nn.Module, example: torch.Tensor, folder: Path, experiment: Experiment) -> None:  # noqa: ARG001
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own use of what is deprecated
        batch = torch.export.Dim("n", min=1)
        program = torch.export.export(network, (example.contiguous(),), dynamic_shapes=({0: batch},))
        torch.export.save(program, folder / "model.pt2")


def _write_onnx(network: nn.Module, example: torch.Tensor, folder: Path, experiment: Experiment) -> None:  # noqa: ARG001
    write_whole(folder / "model.onnx", lambda path: path.write_bytes(onnx_of(network, example[:1])))


def _write_timm(network: nn.Module, example: torch.Tensor, folder: Path, experiment: Experiment) -> None:
    assert isinstance(network, Classifier)
    channels, size = example.shape[1], example.shape[2]
    num_classes = network(example[:1]).shape[1]
    state = {name: value.contiguous() for name, value in network.body.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
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
    write_whole(folder / "config.json", lambda path: path.write_text(json.dumps(config, indent=1) + "\n"))


def _timm_name(experiment: Experiment) -> str:
    """The network's name in timm. Raises :class:`ExperimentError` where it has none."""
    if not isinstance(experiment.model, TimmModel):
        raise ExperimentError(
            f"--format timm is for networks of timm, the run's is {experiment.settings()['model']}; torch and onnx "
            "take any"
        )
    return experiment.model.name


WRITERS: dict[Format, Callable[[nn.Module, torch.Tensor, Path, Experiment], None]] = {
    "torch": _write_torch,
    "onnx": _write_onnx,
    "timm": _write_timm,
}
