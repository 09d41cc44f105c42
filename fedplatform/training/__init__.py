"""Local training in a hospital: by which algorithm, what it makes small and on what; and the prediction after it."""

from fedplatform.parameters import PersonalState
from fedplatform.training.algorithms import (
    ALGORITHMS,
    APFL,
    Algorithm,
    Ditto,
    FedAvg,
    FedBN,
    FedBNP,
    FedPer,
    FedProx,
    FedRep,
    SiloBN,
)
from fedplatform.training.augmentation import AUGMENTATIONS, Anatomy, Augmentation, Orientation, Scanner
from fedplatform.training.objectives import (
    OBJECTIVES,
    AdversarialTraining,
    CrossEntropy,
    Generative,
    Objective,
    Trades,
)
from fedplatform.training.purified import Purified
from fedplatform.training.sampling import SamplingName
from fedplatform.training.tampering import Tampering
from fedplatform.training.trainer import LocalTraining, Stopped, Trainer, to_images

__all__ = [
    "ALGORITHMS",
    "APFL",
    "AUGMENTATIONS",
    "OBJECTIVES",
    "AdversarialTraining",
    "Algorithm",
    "Anatomy",
    "Augmentation",
    "CrossEntropy",
    "Ditto",
    "FedAvg",
    "FedBN",
    "FedBNP",
    "FedPer",
    "FedProx",
    "FedRep",
    "Generative",
    "LocalTraining",
    "Objective",
    "Orientation",
    "PersonalState",
    "Purified",
    "SamplingName",
    "Scanner",
    "SiloBN",
    "Stopped",
    "Tampering",
    "Trades",
    "Trainer",
    "to_images",
]
