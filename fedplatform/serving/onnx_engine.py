"""ONNX Runtime in place of PyTorch: the same networks, faster on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnxruntime
import torch
from torch import nn

from fedplatform.defence import DefendedClassifier, DiffusionPurifier
from fedplatform.learning.models.noise_predictor import NoiseUnet

TOLERANCE = 1e-4
ONLY_WORSE = 3  # of ONNX Runtime's log: errors


@dataclass(frozen=True)
class Exported:
    """The networks of a defence as ONNX files by their part: "classifier", "autoencoder", "sensor", "network".

    ``left`` says why a part has none; it stays on PyTorch. Weights are inside, so a file is as secret as the network.
    """

    models: Mapping[str, bytes]
    left: Mapping[str, str]


def exported(defended: DefendedClassifier, example: torch.Tensor) -> Exported:
    """Export every network of a defence, for batches of any size of images like ``example`` (1, c, h, w).

    It takes seconds a network, where :func:`on_onnx_runtime` takes milliseconds: done once, when a version is
    published.
    """
    models: dict[str, bytes] = {}
    left: dict[str, str] = {}
    for part, network in _networks(defended).items():
        try:
            models[part] = _exported(network, example)
            _check(models[part], network, example)
        except Exception as error:  # a user's own network may do what no graph can say
            models.pop(part, None)
            left[part] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return Exported(models, left)


def on_onnx_runtime(defended: DefendedClassifier, models: Mapping[str, bytes]) -> DefendedClassifier:
    """The same defence with the networks of ``models`` on ONNX Runtime, a thread each; the others stay.

    It answers as the original does to 1e-4, but has no gradient: it wants ``torch.no_grad``.
    """
    parts = {part: _session(model) for part, model in models.items()}
    detector, purifier = defended.detector, defended.purifier
    if detector is not None:
        if "autoencoder" in parts:
            detector = replace(detector, autoencoder=_Autoencoder(parts["autoencoder"]))
        if "sensor" in parts:
            detector = replace(detector, sensor=_Network(parts["sensor"]))
    if isinstance(purifier, DiffusionPurifier) and "network" in parts:
        purifier = replace(purifier, network=_NoisePredictor(parts["network"], purifier.network))
    classifier = _Network(parts["classifier"]) if "classifier" in parts else defended.classifier
    return replace(defended, classifier=classifier, detector=detector, purifier=purifier)


def accelerated(defended: DefendedClassifier, example: torch.Tensor) -> DefendedClassifier:
    """:func:`exported` and :func:`on_onnx_runtime` in one."""
    return on_onnx_runtime(defended, exported(defended, example).models)


class _Network(nn.Module):
    """A network whose arithmetic is ONNX Runtime's."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        super().__init__()
        self.session = session
        self.inputs = [value.name for value in session.get_inputs()]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return _run(self.session, self.inputs, images)


class _Autoencoder(_Network):
    def patch_errors(self, images: torch.Tensor) -> torch.Tensor:
        return self(images)  # type: ignore[no-any-return]


class _NoisePredictor(NoiseUnet):
    """A noise predictor that keeps all of its diffusion and lets ONNX Runtime predict."""

    def __init__(self, session: onnxruntime.InferenceSession, network: NoiseUnet) -> None:
        nn.Module.__init__(self)  # without a network of its own
        self.fold, self.t_max, self.multiple = network.fold, network.t_max, network.multiple
        self.register_buffer("abar", network.abar, persistent=False)
        self.session = session
        self.inputs = [value.name for value in session.get_inputs()]

    def forward(self, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return _run(self.session, self.inputs, noisy, t)


def _run(session: onnxruntime.InferenceSession, names: list[str], *tensors: torch.Tensor) -> torch.Tensor:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise RuntimeError("ONNX Runtime gives no gradient: attack the defence on PyTorch")
    if not len(tensors[0]):
        raise ValueError("ONNX Runtime needs at least one image")
    given = {name: tensor.detach().contiguous().numpy() for name, tensor in zip(names, tensors, strict=True)}
    (answer,) = session.run(None, given)
    return torch.from_numpy(answer)


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # Serve scales by processes; threads that wait for each other's cores would only disturb them.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = ONLY_WORSE
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True, eq=False)
class _Call:
    """What of a network is exported, and with how many arguments beside the images."""

    module: nn.Module
    depths: bool = False


class _PatchErrors(nn.Module):
    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.patch_errors: Callable[[torch.Tensor], torch.Tensor] = autoencoder.patch_errors  # type: ignore[assignment]
        self.autoencoder = autoencoder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.patch_errors(images)


def _networks(defended: DefendedClassifier) -> dict[str, _Call]:
    calls = {"classifier": _Call(defended.classifier)}
    if defended.detector is not None:
        calls["autoencoder"] = _Call(_PatchErrors(defended.detector.autoencoder))
        calls["sensor"] = _Call(defended.detector.sensor)
    if isinstance(defended.purifier, DiffusionPurifier):
        calls["network"] = _Call(defended.purifier.network, depths=True)
    return calls


def _exported(call: _Call, example: torch.Tensor) -> bytes:
    images = example.detach().contiguous().repeat(2, 1, 1, 1)  # of one image a graph is made that takes only one
    arguments = (images, torch.tensor([1, 2])) if call.depths else (images,)
    batch = torch.export.Dim("n", min=1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own use of what is deprecated
        program = torch.onnx.export(
            call.module.eval(),
            arguments,
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in arguments),
            external_data=False,
            verbose=False,
        )
    assert program is not None, "the exporter with dynamo returns its program"
    model: bytes = program.model_proto.SerializeToString()
    return model


def onnx_of(network: nn.Module, example: torch.Tensor) -> bytes:
    """A classifier as ONNX; ``example`` is an image (1, c, h, w). Raises ValueError where it answers otherwise."""
    call = _Call(network)
    model = _exported(call, example)
    _check(model, call, example)
    return model


def _check(model: bytes, call: _Call, example: torch.Tensor) -> None:
    """Raises ValueError unless the model answers as the network does, in other batches than it was made of, too."""
    session = _session(model)
    names = [value.name for value in session.get_inputs()]
    for batch in (1, 5):
        images = torch.rand(batch, *example.shape[1:], generator=torch.Generator().manual_seed(batch))
        arguments = (images, torch.arange(1, batch + 1)) if call.depths else (images,)
        with torch.no_grad():
            apart = float((call.module(*arguments) - _run(session, names, *arguments)).abs().max())
        if not apart <= TOLERANCE:
            raise ValueError(f"a batch of {batch} is answered {apart:g} apart from PyTorch")
