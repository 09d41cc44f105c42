"""The networks, and the table by which the command line names them."""

from collections.abc import Callable

from fedplatform.models.classifier import Classifier, ModelBuilder, SmallCnn, TimmModel
from fedplatform.models.experts import Experts
from fedplatform.models.masked_autoencoder import MaskedAutoencoder
from fedplatform.models.noise_predictor import NoisePredictor
from fedplatform.models.residual import SmallResNet
from fedplatform.models.residual_sensor import ResidualSensor

MODELS: dict[str, Callable[..., ModelBuilder]] = {
    "small_cnn": SmallCnn,
    "small_resnet": SmallResNet,
    "experts": Experts,
    "masked_autoencoder": MaskedAutoencoder,
    "noise_predictor": NoisePredictor,
    "residual_sensor": ResidualSensor,
}

__all__ = [
    "MODELS",
    "Classifier",
    "Experts",
    "MaskedAutoencoder",
    "ModelBuilder",
    "NoisePredictor",
    "ResidualSensor",
    "SmallCnn",
    "SmallResNet",
    "TimmModel",
]
