"""The networks, and the table by which the command line names them."""

from collections.abc import Callable

from fedplatform.learning.models.classifier import (
    Classifier,
    ModelBuilder,
    OrdinalClassifier,
    SmallCnn,
    TimmModel,
)
from fedplatform.learning.models.efficientnet_lite0 import EfficientNetLite0
from fedplatform.learning.models.experts import Experts
from fedplatform.learning.models.masked_autoencoder import MaskedAutoencoder
from fedplatform.learning.models.noise_predictor import NoisePredictor
from fedplatform.learning.models.residual import SmallResNet
from fedplatform.learning.models.residual_sensor import ResidualSensor

MODELS: dict[str, Callable[..., ModelBuilder]] = {
    "small_cnn": SmallCnn,
    "small_resnet": SmallResNet,
    "efficientnet_lite0": EfficientNetLite0,
    "experts": Experts,
    "masked_autoencoder": MaskedAutoencoder,
    "noise_predictor": NoisePredictor,
    "residual_sensor": ResidualSensor,
    "timm": TimmModel,
}

__all__ = [
    "MODELS",
    "Classifier",
    "EfficientNetLite0",
    "Experts",
    "MaskedAutoencoder",
    "ModelBuilder",
    "NoisePredictor",
    "OrdinalClassifier",
    "ResidualSensor",
    "SmallCnn",
    "SmallResNet",
    "TimmModel",
]
